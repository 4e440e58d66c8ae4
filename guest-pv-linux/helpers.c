// SPDX-License-Identifier: GPL-2.0-only
/*
 * Paravane guest support: what has to be C.
 *
 * The logic is in the Rust files of this folder. Here are the kernel's hooks:
 * structures that have no Rust binding in this kernel, macros, and objects
 * that belong in special sections. Each function says which of these it is.
 */

#define pr_fmt(fmt) "paravane: " fmt

#include <linux/acpi.h>
#include <linux/console.h>
#include <linux/debugfs.h>
#include <linux/export.h>
#include <linux/init.h>
#include <linux/io.h>
#include <linux/kallsyms.h>
#include <linux/kdebug.h>
#include <linux/kmsg_dump.h>
#include <linux/kvm_para.h>
#include <linux/notifier.h>
#include <linux/panic.h>
#include <linux/panic_notifier.h>
#include <linux/pm.h>
#include <linux/reboot.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
#include <linux/serial_8250.h>
#include <linux/spinlock.h>
#include <linux/stacktrace.h>
#include <linux/time64.h>
#include <linux/timekeeping.h>
#include <linux/vmstat.h>
#include <linux/workqueue.h>

#include <asm/acpi.h>
#include <asm/alternative.h>
#include <asm/apic.h>
#include <asm/cpufeature.h>
#include <asm/desc.h>
#include <asm/e820/api.h>
#include <asm/hypervisor.h>
#include <asm/i8259.h>
#include <asm/idtentry.h>
#include <asm/io.h>
#include <asm/irq_regs.h>
#include <asm/mpspec.h>
#include <asm/msr.h>
#include <asm/paravirt.h>
#include <asm/pci_x86.h>
#include <asm/reboot.h>
#include <asm/special_insns.h>
#include <asm/tsc.h>
#include <asm/x86_init.h>

#include "hvc_console.h"
#include "paravane.h"

/* The virtual terminal of the one console. */
#define PARAVANE_VTERM		0
/* hvc's buffer; the tty layer writes half of this at once. */
#define PARAVANE_HVC_BUFFER	4096

/* How often the statistics of memory are brought up to date, jiffies. */
#define PARAVANE_STAT_INTERVAL	(60 * HZ)

/*
 * ---- Small services for the Rust files ----
 */

/* C because native_cpuid() is an inline. */
void paravane_cpuid(u32 leaf, u32 registers[4])
{
	registers[0] = leaf;
	registers[2] = 0;
	if (paravane_direct_cpuid(registers))
		return;
	native_cpuid(&registers[0], &registers[1], &registers[2], &registers[3]);
}

/* What __cpuid() is. C because a Rust function cannot be exported. */
void paravane_answer_cpuid(unsigned int *eax, unsigned int *ebx,
			   unsigned int *ecx, unsigned int *edx)
{
	u32 registers[4] = { *eax, 0, *ecx, 0 };

	if (!paravane_cpuid_find(*eax, *ecx, registers) &&
	    !paravane_direct_cpuid(registers)) {
		native_cpuid(eax, ebx, ecx, edx);
		return;
	}
	*eax = registers[0];
	*ebx = registers[1];
	*ecx = registers[2];
	*edx = registers[3];
}
EXPORT_SYMBOL(paravane_answer_cpuid);

/* C because rdtsc_ordered() is an alternative. */
u64 paravane_rdtsc(void)
{
	return rdtsc_ordered();
}

/* C because outl() is an inline function. */
void paravane_out(u16 port, u32 value)
{
	outl(value, port);
}

/* C because struct timespec64 has no binding. */
void paravane_set_wall(u64 wall_ns)
{
	struct timespec64 now = ns_to_timespec64(wall_ns);

	if (do_settimeofday64(&now))
		pr_warn("clock: a time of day of %llu ns cannot be\n", wall_ns);
	else
		pr_info("clock: the time of day has been set by the host\n");
}

/* C because __va() is a macro. */
void *paravane_va(u64 address)
{
	return __va(address);
}

/* C because __pa() is a macro. */
u64 paravane_pa(const void *pointer)
{
	return __pa(pointer);
}

/* C because enum e820_type has no binding. */
bool __init paravane_is_reserved(u64 address, u64 size)
{
	return e820__mapped_all(address, address + size, E820_TYPE_RESERVED);
}

/* C because a raw spinlock has no Rust abstraction. */
static DEFINE_RAW_SPINLOCK(paravane_output_lock);

bool paravane_lock_output(unsigned long *flags)
{
	if (oops_in_progress)
		return raw_spin_trylock_irqsave(&paravane_output_lock, *flags);
	raw_spin_lock_irqsave(&paravane_output_lock, *flags);
	return true;
}

void paravane_unlock_output(unsigned long flags)
{
	raw_spin_unlock_irqrestore(&paravane_output_lock, flags);
}

/* C because of per_cpu(). */
u32 paravane_apic_id(void)
{
	return per_cpu(x86_cpu_to_apicid, raw_smp_processor_id());
}

/*
 * ---- Early console and hvc: struct console, struct hv_ops ----
 */

static void paravane_early_write(struct console *con, const char *bytes,
				 unsigned int count)
{
	paravane_console_print(bytes, count);
}

static struct console paravane_early_console = {
	.name	= "paravane",
	.write	= paravane_early_write,
	.flags	= CON_BOOT | CON_PRINTBUFFER | CON_ANYTIME,
	.index	= -1,
};

static struct hvc_struct *paravane_hvc;
/* Whether the host raises an event when input arrives; if not, hvc polls. */
static bool paravane_has_event;

static int paravane_notifier_add(struct hvc_struct *hp, int irq)
{
	hp->irq_requested = paravane_has_event;
	return 0;
}

static void paravane_notifier_del(struct hvc_struct *hp, int irq)
{
	hp->irq_requested = 0;
}

static const struct hv_ops paravane_hv_ops = {
	.get_chars		= paravane_console_get,
	.put_chars		= paravane_console_put,
	.notifier_add		= paravane_notifier_add,
	.notifier_del		= paravane_notifier_del,
	.notifier_hangup	= paravane_notifier_del,
};

static void paravane_clock_work_fn(struct work_struct *work)
{
	paravane_clock_follow();
}

/* C because of DECLARE_WORK(). */
static DECLARE_WORK(paravane_clock_work, paravane_clock_work_fn);

/* C because initcalls are section entries. */
static int __init paravane_clock_initcall(void)
{
	/* A jump before this call has raised nothing. */
	if (paravane_clock_listen(PARAVANE_EVENT_VECTOR,
				  per_cpu(x86_cpu_to_apicid, 0)))
		schedule_work(&paravane_clock_work);
	return 0;
}
device_initcall(paravane_clock_initcall);

/*
 * C because of the idtentry macros. Input has arrived, or the clock has
 * jumped, or neither.
 */
DEFINE_IDTENTRY_SYSVEC(sysvec_paravane_event)
{
	struct pt_regs *old_regs = set_irq_regs(regs);
	struct hvc_struct *hp = READ_ONCE(paravane_hvc);

	apic_eoi();
	inc_irq_stat(irq_hv_callback_count);
	if (hp && hvc_poll(hp))
		hvc_kick();
	paravane_virtio_event();
	paravane_smp_event();
	paravane_memory_event();
	if (paravane_clock_has_jumped())
		schedule_work(&paravane_clock_work);
	set_irq_regs(old_regs);
}

/* C because initcalls are section entries. hvc0 takes over from the early console. */
static int __init paravane_console_initcall(void)
{
	if (paravane_has_console())
		hvc_instantiate(PARAVANE_VTERM, 0, &paravane_hv_ops);
	return 0;
}
console_initcall(paravane_console_initcall);

static int __init paravane_tty_initcall(void)
{
	struct hvc_struct *hp;

	if (!paravane_has_console())
		return 0;
	hp = hvc_alloc(PARAVANE_VTERM, 0, &paravane_hv_ops, PARAVANE_HVC_BUFFER);
	if (IS_ERR(hp))
		return PTR_ERR(hp);
	WRITE_ONCE(paravane_hvc, hp);
	paravane_has_event = paravane_console_listen(PARAVANE_EVENT_VECTOR,
						     per_cpu(x86_cpu_to_apicid, 0));
	return 0;
}
device_initcall(paravane_tty_initcall);

/*
 * ---- Power: struct machine_ops ----
 */

/* What a PC would do, for a host that refuses. */
static struct machine_ops paravane_native_ops __ro_after_init;

static void paravane_machine_power_off(void)
{
	paravane_power_off();
	paravane_native_ops.power_off();
}

static void paravane_machine_restart(char *command)
{
	paravane_restart(command);
	paravane_native_ops.restart(command);
}

static void paravane_machine_emergency_restart(void)
{
	paravane_emergency_restart();
	paravane_native_ops.emergency_restart();
}

static void __init paravane_init_power(void)
{
	paravane_native_ops = machine_ops;
	machine_ops.power_off = paravane_machine_power_off;
	machine_ops.restart = paravane_machine_restart;
	machine_ops.emergency_restart = paravane_machine_emergency_restart;
	/* Without it, reboot(2) makes a halt of a power off. */
	pm_power_off = paravane_power_off;
}

/*
 * ---- Panic: struct notifier_block, pt_regs, control registers ----
 */

/* The latest oops. A panic in the same task is its consequence. */
static struct {
	struct task_struct *task;
	unsigned long ip, sp, cr2;
	unsigned long trace[32];
	unsigned int trace_len;
} paravane_oops;

static int paravane_die_event(struct notifier_block *nb, unsigned long event,
			      void *data)
{
	struct die_args *args = data;

	if (event != DIE_OOPS || !args->regs)
		return NOTIFY_DONE;
	paravane_oops.task = current;
	paravane_oops.ip = args->regs->ip;
	paravane_oops.sp = args->regs->sp;
	paravane_oops.cr2 = native_read_cr2();
	paravane_oops.trace_len =
		stack_trace_save_regs(args->regs, paravane_oops.trace,
				      ARRAY_SIZE(paravane_oops.trace), 0);
	return NOTIFY_DONE;
}

static struct notifier_block paravane_die_block = {
	.notifier_call	= paravane_die_event,
};

/* Fills paravane_oops for a panic that no oops came before. */
static void paravane_trace_panic(void)
{
	unsigned long size, offset;
	unsigned int i, skip = 0;
	unsigned long *trace = paravane_oops.trace;

	paravane_oops.task = current;
	paravane_oops.sp = current_stack_pointer;
	paravane_oops.cr2 = native_read_cr2();
	paravane_oops.trace_len =
		stack_trace_save(trace, ARRAY_SIZE(paravane_oops.trace), 0);
	/* Begin with who called panic(). */
	for (i = 0; i + 1 < paravane_oops.trace_len; i++) {
		if (kallsyms_lookup_size_offset(trace[i], &size, &offset) &&
		    trace[i] - offset == (unsigned long)panic) {
			skip = i + 1;
			break;
		}
	}
	paravane_oops.trace_len -= skip;
	memmove(trace, trace + skip, paravane_oops.trace_len * sizeof(*trace));
	paravane_oops.ip = trace[0];
}

void paravane_crash_registers(u64 registers[4])
{
	if (paravane_oops.task != current)
		paravane_trace_panic();
	registers[0] = paravane_oops.ip;
	registers[1] = paravane_oops.sp;
	registers[2] = paravane_oops.cr2;
	registers[3] = __native_read_cr3();
}

u32 paravane_crash_backtrace(u64 *entries, u32 max)
{
	u32 i, count = min(paravane_oops.trace_len, max);

	for (i = 0; i < count; i++)
		entries[i] = paravane_oops.trace[i];
	return count;
}

u32 paravane_crash_log(char *buffer, u32 size)
{
	struct kmsg_dump_iter iter;
	size_t length = 0;

	kmsg_dump_rewind(&iter);
	kmsg_dump_get_buffer(&iter, false, buffer, size, &length);
	return length;
}

static int paravane_panic_event(struct notifier_block *nb, unsigned long event,
				void *message)
{
	paravane_crash(message);
	return NOTIFY_DONE;
}

static struct notifier_block paravane_panic_block = {
	.notifier_call	= paravane_panic_event,
	.priority	= INT_MIN,	/* The machine stops here. */
};

/*
 * ---- Platform: struct hypervisor_x86, x86_init, x86_platform ----
 */

static void paravane_get_wallclock(struct timespec64 *now)
{
	*now = ns_to_timespec64(paravane_wall_ns());
}

static unsigned char paravane_get_nmi_reason(void)
{
	return 0;
}

/*
 * In place of the legacy timers. Without a frequency of the TSC there is not
 * one clock in this machine, and the kernel would wait for a tick for ever.
 */
static void __init paravane_timer_init(void)
{
	if (!tsc_khz && inb(0x61) == 0xff)
		panic("the host has no facility clock, CPUID does not tell the frequency of the TSC, and there is no PIT to measure it; give this guest the facility clock");
	paravane_start_early_clock();
}

static void __init paravane_init_clock(void)
{
	x86_platform.get_wallclock = paravane_get_wallclock;
	x86_platform.set_wallclock = set_rtc_noop;
	x86_init.timers.timer_init = paravane_timer_init;
	if (!paravane_has_clock())
		return;

	x86_platform.calibrate_tsc = paravane_tsc_khz;
	x86_platform.calibrate_cpu = paravane_tsc_khz;
	setup_force_cpu_cap(X86_FEATURE_TSC_KNOWN_FREQ);
	if (paravane_tsc_reliable()) {
		setup_force_cpu_cap(X86_FEATURE_TSC_RELIABLE);
		/* Nobody writes it, so nobody has to look at it every second. */
		setup_clear_cpu_cap(X86_FEATURE_TSC_ADJUST);
		/* Without it each processor that starts measures its delay loop. */
		setup_force_cpu_cap(X86_FEATURE_CONSTANT_TSC);
	}
	lapic_timer_period = div_u64(paravane_apic_timer_hz(), HZ);
}

#ifdef CONFIG_X86_X2APIC
/*
 * Switch now instead of when interrupts are set up: until then each access to
 * the local APIC would be one to emulated memory.
 */
static void __init paravane_enable_x2apic(void)
{
	u64 base;

	if (!boot_cpu_has(X86_FEATURE_X2APIC))
		return;
	rdmsrl(MSR_IA32_APICBASE, base);
	if ((base & (MSR_IA32_APICBASE_ENABLE | X2APIC_ENABLE)) == MSR_IA32_APICBASE_ENABLE)
		wrmsrl(MSR_IA32_APICBASE, base | X2APIC_ENABLE);
}

static void __init paravane_install_x2apic(void)
{
	if (!x2apic_mode)
		return;
	/* Logical ids would tie the guest to the host's topology. */
	x2apic_phys = 1;
	/* Without OEM ids, only the driver for x2APIC feels called. */
	default_acpi_madt_oem_check("", "");
	/* Needs a local APIC as after power-on where a processor starts again. */
	if (paravane_has_smp())
		paravane_init_apic();
}
#else
static inline void paravane_enable_x2apic(void) { }
static inline void paravane_install_x2apic(void) { }
#endif

static bool __init paravane_x2apic_available(void)
{
	return boot_cpu_has(X86_FEATURE_X2APIC);
}

static void __init paravane_parse_smp_cfg(void)
{
	u32 id, count = min(paravane_vcpu_count(), MAX_LOCAL_APIC);

	paravane_install_x2apic();
	register_lapic_address(APIC_DEFAULT_PHYS_BASE);
	for (id = 0; id < count; id++)
		topology_register_apic(id, CPU_ACPIID_INVALID, true);
	smp_found_config = 1;
}

#ifdef CONFIG_SERIAL_8250
/* With our console there is no UART; a UART beside it has no interrupt. */
static void paravane_serial_fixup(int port, struct uart_port *up,
				  u32 *capabilities)
{
	if (paravane_has_console())
		up->iobase = 0;
	else
		up->irq = 0;
}

static void __init paravane_init_serial(void)
{
	serial8250_set_isa_configurator(paravane_serial_fixup);
}
#else
static inline void paravane_init_serial(void) { }
#endif

#ifdef CONFIG_PCI
static int __init paravane_pci_noop(void)
{
	return 0;
}

static void __init paravane_init_pci(void)
{
	pci_probe = 0;
	x86_init.pci.arch_init = paravane_pci_noop;
	x86_init.pci.init = paravane_pci_noop;
	x86_init.pci.init_irq = x86_init_noop;
}
#else
static inline void paravane_init_pci(void) { }
#endif

/* There is no device of a legacy PC. */
static void __init paravane_init_no_legacy(void)
{
	x86_init.resources.probe_roms = x86_init_noop;
	x86_init.resources.dmi_setup = x86_init_noop;
	x86_init.mpparse.find_mptable = x86_init_noop;
	x86_init.mpparse.early_parse_smp_cfg = x86_init_noop;
	x86_init.mpparse.parse_smp_cfg = paravane_parse_smp_cfg;
	x86_init.irqs.pre_vector_init = x86_init_noop;
	x86_platform.get_nmi_reason = paravane_get_nmi_reason;
	x86_platform.legacy.i8042 = X86_LEGACY_I8042_PLATFORM_ABSENT;
	x86_platform.legacy.rtc = 0;
	x86_platform.legacy.warm_reset = 0;
	x86_platform.legacy.no_vga = 1;
	x86_platform.legacy.reserve_bios_regions = 0;
	x86_platform.legacy.devices.pnpbios = 0;
	legacy_pic = &null_legacy_pic;
	disable_acpi();
	paravane_init_pci();
	paravane_init_serial();
}

#ifdef CONFIG_KVM_GUEST
/* C because of struct hypervisor_x86. The features in CPUID say what is set up. */
static void __init paravane_init_delegated(void)
{
	if (!paravane_kvm_features())
		return;
	/* Without its block, kvm.c would take another leaf for its features. */
	if (kvm_para_available())
		x86_hyper_kvm.init.init_platform();
	else
		pr_warn("CPUID has no block of KVM's; its features are not used\n");
}

/* What KVM has set up is still a Paravane guest. */
static void __init paravane_late_delegated(void)
{
	if (!paravane_kvm_features())
		return;
	x86_hyper_kvm.init.guest_late_init();
	pv_info.name = "Paravane";
}
#else
static inline void paravane_init_delegated(void) { }
static inline void paravane_late_delegated(void) { }
#endif

static void __init paravane_guest_late_init(void)
{
	paravane_late_delegated();
	paravane_init_tlb();
}

static void __init paravane_init_platform(void)
{
	pv_info.name = "Paravane";
	if (paravane_has_console()) {
		register_console(&paravane_early_console);
		add_preferred_console("hvc", 0, NULL);
	}
	sysvec_install(PARAVANE_EVENT_VECTOR, sysvec_paravane_event);
	pr_info("ABI %#llx, facilities %#llx, transports %#llx\n",
		paravane_rust_value(1), paravane_rust_value(2),
		paravane_rust_value(3));

	/*
	 * Each look at the statistics keeps an idle processor awake for some
	 * ticks. vm.stat_interval sets it back.
	 */
	sysctl_stat_interval = PARAVANE_STAT_INTERVAL;
	/* Another processor can come at any time, and taking them out is slow. */
	noreplace_smp = true;

	paravane_seed_rng();
	paravane_init_no_legacy();
	paravane_init_clock();
	paravane_init_timer();
	paravane_init_power();
	paravane_enable_x2apic();
	paravane_init_delegated();
	paravane_init_smp();
	paravane_init_direct();
	register_die_notifier(&paravane_die_block);
	atomic_notifier_chain_register(&panic_notifier_list,
				       &paravane_panic_block);
}

/* C because boot_cpu_has() is a macro. */
static u32 __init paravane_detect_host(void)
{
	return boot_cpu_has(X86_FEATURE_HYPERVISOR) ? paravane_detect() : 0;
}

const struct hypervisor_x86 x86_hyper_paravane __refconst = {
	.name			= "Paravane",
	.detect			= paravane_detect_host,
	.type			= X86_HYPER_PARAVANE,
	.init.init_platform	= paravane_init_platform,
	.init.x2apic_available	= paravane_x2apic_available,
	.init.guest_late_init	= paravane_guest_late_init,
	.init.init_mem_mapping	= paravane_init_memory,
	.ignore_nopv		= true,
};

/*
 * ---- For the modules: a Rust function cannot be exported ----
 */

u64 paravane_value(u32 which)
{
	return paravane_rust_value(which);
}
EXPORT_SYMBOL_GPL(paravane_value);

u64 paravane_call_count(u32 index)
{
	return paravane_rust_call_count(index);
}
EXPORT_SYMBOL_GPL(paravane_call_count);

#if IS_ENABLED(CONFIG_PARAVANE_DEBUGFS)
/* C because struct file_operations has no binding. */
static int paravane_debugfs_show(struct seq_file *file, void *unused)
{
	void (*show)(struct seq_file *file) = file->private;

	show(file);
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(paravane_debugfs);

struct dentry *paravane_debugfs_dir(void)
{
	struct dentry *dir = debugfs_create_dir("paravane", NULL);

	return IS_ERR(dir) ? NULL : dir;
}
EXPORT_SYMBOL_GPL(paravane_debugfs_dir);

bool paravane_debugfs_file(struct dentry *dir, const char *name,
			   void (*show)(struct seq_file *file))
{
	return !IS_ERR(debugfs_create_file(name, 0400, dir, show,
					   &paravane_debugfs_fops));
}
EXPORT_SYMBOL_GPL(paravane_debugfs_file);

void paravane_debugfs_remove(struct dentry *dir)
{
	debugfs_remove(dir);
}
EXPORT_SYMBOL_GPL(paravane_debugfs_remove);

void paravane_seq_write(struct seq_file *file, const void *bytes, size_t count)
{
	seq_write(file, bytes, count);
}
EXPORT_SYMBOL_GPL(paravane_seq_write);
#endif
