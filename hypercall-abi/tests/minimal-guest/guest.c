/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * The smallest useful guest: C, paravane.h and SPEC.md, and no other part of the project. It finds
 * the host, says what it found by console.write and through the output ring, reads the clock both
 * ways and powers off. It runs on one processor and uses no interrupts.
 *
 * The machine it is started on has long mode with an identity map (SPEC.md, machine model).
 */
#include "paravane.h"

struct result {
	int64_t status;
	uint64_t value;
};

static struct paravane_boot_info info;
static uint16_t doorbell;

/* PV-CALL-1, PV-CALL-2; PV-CALL-3: what a call does not use is zero. */
static struct result call(uint32_t id, uint64_t arg0, uint64_t arg1)
{
	register uint64_t r8 __asm__("r8") = 0;
	register uint64_t r9 __asm__("r9") = 0;
	register uint64_t r10 __asm__("r10") = 0;
	register uint64_t r11 __asm__("r11") = 0;
	uint64_t rax = id, rdx = doorbell;

	__asm__ volatile("outl %%eax, %%dx"
			 : "+a"(rax), "+d"(rdx)
			 : "D"(arg0), "S"(arg1), "r"(r8), "r"(r9), "r"(r10), "r"(r11)
			 : "memory");
	return (struct result){ (int64_t)rax, rdx };
}

static void cpuid(uint32_t leaf, uint32_t out[4])
{
	__asm__ volatile("cpuid"
			 : "=a"(out[0]), "=b"(out[1]), "=c"(out[2]), "=d"(out[3])
			 : "a"(leaf), "c"(0));
}

static uint64_t rdtsc(void)
{
	uint32_t low, high;

	__asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
	return (uint64_t)high << 32 | low;
}

static int has(uint32_t facility)
{
	return facility < 64 && info.facilities >> facility & 1;
}

/* PV-DISC-1 to PV-DISC-4, PV-BOOT-2, PV-BOOT-3. */
static int find_host(void)
{
	uint32_t base, r[4];
	const volatile uint8_t *page;
	uint64_t address;

	for (base = PARAVANE_CPUID_BASE_FIRST; base < PARAVANE_CPUID_BASE_END;
	     base += PARAVANE_CPUID_BASE_STEP) {
		cpuid(base + PARAVANE_CPUID_LEAF_SIGNATURE, r);
		if (r[1] == PARAVANE_CPUID_SIGNATURE_EBX && r[2] == PARAVANE_CPUID_SIGNATURE_ECX &&
		    r[3] == PARAVANE_CPUID_SIGNATURE_EDX && r[0] >= base + PARAVANE_CPUID_LEAF_BOOT)
			break;
	}
	if (base >= PARAVANE_CPUID_BASE_END)
		return 0;
	cpuid(base + PARAVANE_CPUID_LEAF_FEATURES, r);
	if (!(r[3] & PARAVANE_TRANSPORT_DOORBELL))
		return 0;
	cpuid(base + PARAVANE_CPUID_LEAF_BOOT, r);
	doorbell = (uint16_t)r[2];
	address = (uint64_t)r[1] << 32 | r[0];
	page = (const volatile uint8_t *)address;
	for (unsigned int i = 0; i < sizeof(info); i++)
		((uint8_t *)&info)[i] = page[i];
	return info.magic == PARAVANE_BOOT_INFO_MAGIC && info.size >= sizeof(info);
}

/* PV-CONSOLE-4, PV-CONSOLE-6. */
static void ring_write(const char *text, uint32_t length)
{
	volatile struct paravane_console_page *page = (void *)info.console.address;
	volatile char *buffer = (volatile char *)page + PARAVANE_PAGE_SIZE;
	uint32_t head = page->out_head;

	while (length) {
		if (head - page->out_tail >= info.console.out_size) {
			call(PARAVANE_CALL_CONSOLE_NOTIFY, 0, 0);
			continue;
		}
		buffer[head++ & (info.console.out_size - 1)] = *text++;
		length--;
		__asm__ volatile("" : : : "memory");	/* x86 keeps the order of stores */
		page->out_head = head;
	}
	__asm__ volatile("lock; addl $0, (%%rsp)" : : : "memory", "cc");
	if (!page->host_looks)
		call(PARAVANE_CALL_CONSOLE_NOTIFY, 0, 0);
}

static void print(const char *text)
{
	uint32_t length = 0;

	while (text[length])
		length++;
	if (has(PARAVANE_FACILITY_CONSOLE))
		call(PARAVANE_CALL_CONSOLE_WRITE, (uint64_t)text, length);
}

static void print_number(const char *before, uint64_t number)
{
	char digits[24];
	unsigned int at = sizeof(digits) - 1;

	digits[at] = 0;
	digits[--at] = '\n';
	do {
		digits[--at] = (char)('0' + number % 10);
		number /= 10;
	} while (number);
	print(before);
	print(digits + at);
}

/* PV-CLOCK-2; the product has more than 64 bits. */
static uint64_t wall_of_page(void)
{
	unsigned __int128 ticks = rdtsc() - info.clock.wall_tsc;
	uint64_t high, low, quotient, rest;

	ticks *= 1000000000;
	high = (uint64_t)(ticks >> 64);
	low = (uint64_t)ticks;
	__asm__("divq %4"
		: "=a"(quotient), "=d"(rest)
		: "a"(low), "d"(high), "r"(info.clock.tsc_hz)
		: "cc");
	(void)rest;
	return info.clock.wall_ns + quotient;
}

__attribute__((noreturn)) void guest(void)
{
	static const char ring[] = "minimal: and this came through the ring\n";

	if (find_host()) {
		print("minimal: hello by console.write\n");
		if (has(PARAVANE_FACILITY_CONSOLE) && info.console.out_size)
			ring_write(ring, sizeof(ring) - 1);
		print_number("minimal: version ", call(PARAVANE_CALL_BASE_VERSION, 0, 0).value);
		print_number("minimal: facilities ", info.facilities);
		print_number("minimal: generation ", info.generation);
		if (has(PARAVANE_FACILITY_CLOCK)) {
			struct result wall = call(PARAVANE_CALL_CLOCK_WALL, 0, 0);

			if (wall.status == PARAVANE_STATUS_OK)
				print_number("minimal: clock.wall ", wall.value);
			if (info.clock.flags & PARAVANE_CLOCK_TSC_RELIABLE && info.clock.tsc_hz)
				print_number("minimal: wall by page ", wall_of_page());
		} else {
			print("minimal: no clock\n");
		}
		call(PARAVANE_CALL_BASE_POWER, PARAVANE_POWER_OFF, PARAVANE_POWER_REASON_NONE);
	}
	for (;;)	/* no host, or one that does not know base.power */
		__asm__ volatile("cli; hlt");
}

/* The entry: a stack of our own; nothing else is needed before C. */
__asm__(".section .text.entry, \"ax\"\n"
	".globl entry\n"
	"entry:\n"
	"	lea stack_end(%rip), %rsp\n"
	"	xor %ebp, %ebp\n"
	"	call guest\n"
	".local stack\n"
	".comm stack, 8192, 16\n"
	".set stack_end, stack + 8192\n"
	".text\n");
