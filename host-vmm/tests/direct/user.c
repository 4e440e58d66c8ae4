/* SPDX-License-Identifier: Apache-2.0 OR MIT */
/*
 * A user of a direct guest that tries what it must not be able to do, unless it has an argument, and what any user does.
 * Prints a line for each attempt that went wrong, and a last line with their number.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define ENDED_ITSELF 1000
#define KERNEL 0xffffffff81000000

static int wrong;

static void expect(const char *what, uintptr_t at, long got, long wanted)
{
	if (got == wanted)
		return;
	printf("%s %#lx: %ld in place of %ld\n", what, (unsigned long)at, got, wanted);
	wrong++;
}

/* The signal that ends a process which does this. */
static int ended_by(void (*attempt)(uintptr_t), uintptr_t at)
{
	pid_t child = fork();
	int status;

	if (child == 0) {
		attempt(at);
		_exit(0);
	}
	waitpid(child, &status, 0);
	return WIFSIGNALED(status) ? WTERMSIG(status) : ENDED_ITSELF + WEXITSTATUS(status);
}

static void read_it(uintptr_t at) { (void)*(volatile long *)at; }
static void write_it(uintptr_t at) { *(volatile long *)at = 0; }
static void jump_to_it(uintptr_t at) { ((void (*)(void))at)(); }
static void halt(uintptr_t at) { (void)at; asm volatile("hlt"); }
static void load_root(uintptr_t at) { asm volatile("mov %0, %%cr3" : : "r"(at)); }
static void output(uintptr_t at) { asm volatile("outl %%eax, %%dx" : : "a"(0x10004), "d"((short)at)); }
static void load_stack(uintptr_t at) { asm volatile("mov %0, %%ss" : : "r"(at)); }
static void breakpoint(uintptr_t at) { (void)at; asm volatile("int3"); }
static void undefined(uintptr_t at) { (void)at; asm volatile("ud2"); }
static void divide(uintptr_t at) { asm volatile("div %1" : "+a"(at) : "r"(0L), "d"(0L)); }
static void trap_flag(uintptr_t at)
{
	(void)at;
	asm volatile("pushf; orl $0x100, (%%rsp); popf; nop; nop" : : : "memory");
}

/* A signal's return with segments that nobody can return to. */
static void on_signal(int number, siginfo_t *info, void *context)
{
	unsigned short *segments = (void *)&((ucontext_t *)context)->uc_mcontext.gregs[REG_CSGSFS];

	(void)info;
	if (number != SIGUSR1)
		_exit(7);
	segments[3] = 0x18;
}

static void return_badly(uintptr_t at)
{
	static char stack[1 << 16];
	struct sigaction action = { .sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK };

	(void)at;
	sigaltstack(&(stack_t){ .ss_sp = stack, .ss_size = sizeof(stack) }, NULL);
	sigaction(SIGUSR1, &action, NULL);
	sigaction(SIGSEGV, &action, NULL);
	sigaction(SIGBUS, &action, NULL);
	raise(SIGUSR1);
}

static volatile sig_atomic_t interrupted;

static void on_alarm(int number)
{
	interrupted = number;
}

/* An interrupt must come to a user that makes no system call. */
static void spin(void)
{
	struct itimerval soon = { .it_value.tv_usec = 5000 };

	signal(SIGALRM, on_alarm);
	setitimer(ITIMER_REAL, &soon, NULL);
	getppid();
	for (long i = 0; i < 4000000000 && !interrupted; i++)
		;
	expect("alarm", 0, interrupted, SIGALRM);
}

static void *compute(void *seed)
{
	static double results[8];
	double x = (uintptr_t)seed;

	for (int i = 0; i < 200000; i++)
		x = x * 1.0000001 + 0.5;
	results[(uintptr_t)seed] = x;
	return &results[(uintptr_t)seed];
}

static void what_is_forbidden(void)
{
	/* The image, the memory, the switcher's area, tables and code. */
	static const uintptr_t places[] = {
		KERNEL, 0xffffffff81800000, 0xffff888000000000, 0xffff888001000000,
		0xfffffc8000000000, 0xfffffc8000001000, 0xfffffc8000003000, 0xfffffc8000004000,
	};

	for (unsigned int i = 0; i < sizeof(places) / sizeof(*places); i++) {
		expect("read", places[i], ended_by(read_it, places[i]), SIGSEGV);
		expect("write", places[i], ended_by(write_it, places[i]), SIGSEGV);
		expect("jump", places[i], ended_by(jump_to_it, places[i]), SIGSEGV);
	}
	expect("write", 0xfffffc8000009000, ended_by(write_it, 0xfffffc8000009000), SIGSEGV);
	expect("hlt", 0, ended_by(halt, 0), SIGSEGV);
	expect("mov cr3", 0, ended_by(load_root, 0), SIGSEGV);
	expect("out", 0x7e, ended_by(output, 0x7e), SIGSEGV);
	expect("mov ss", 0x10, ended_by(load_stack, 0x10), SIGSEGV);
	expect("sigreturn", 0x18, ended_by(return_badly, 0), ENDED_ITSELF + 7);
}

static void what_is_usual(void)
{
	char *memory = mmap(NULL, 1 << 22, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int zero = open("/dev/zero", O_RDONLY);
	pthread_t threads[8];
	uintptr_t page = (uintptr_t)memory;
	int status, steps = 0;
	double *result, own;
	pid_t child;

	expect("int3", 0, ended_by(breakpoint, 0), SIGTRAP);
	expect("ud2", 0, ended_by(undefined, 0), SIGILL);
	expect("div", 0, ended_by(divide, 0), SIGFPE);
	expect("trap flag", 0, ended_by(trap_flag, 0), SIGTRAP);

	expect("read into nothing", 0, read(zero, (void *)0x1000, 4096) + errno, EFAULT - 1);
	expect("read into memory", page, read(zero, memory, 1 << 22), 1 << 22);
	memset(memory, 7, 1 << 22);
	if (fork() == 0) {
		memset(memory, 9, 1 << 22);
		_exit(0);
	}
	wait(&status);
	expect("copy on write", page, memory[4096], 7);
	mprotect(memory, 4096, PROT_NONE);
	expect("read of nobody's", page, ended_by(read_it, page), SIGSEGV);
	mprotect(memory, 4096, PROT_READ);
	expect("write to read-only", page, ended_by(write_it, page), SIGSEGV);
	expect("jump to data", page, ended_by(jump_to_it, page + 8192), SIGSEGV);

	for (uintptr_t i = 0; i < 8; i++)
		pthread_create(&threads[i], NULL, compute, (void *)i);
	own = *(double *)compute((void *)3);
	for (int i = 0; i < 8; i++) {
		pthread_join(threads[i], (void **)&result);
		if (i == 3)
			expect("threads' floating point", 0, *result == own, 1);
	}

	child = fork();
	if (child == 0) {
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		_exit(0);
	}
	waitpid(child, &status, 0);
	while (WIFSTOPPED(status) && steps < 20) {
		ptrace(PTRACE_SINGLESTEP, child, 0, 0);
		waitpid(child, &status, 0);
		steps++;
	}
	expect("single steps", 0, steps > 3, 1);
	kill(child, SIGKILL);
	spin();
}

/* With an argument: the guest does without the isolation of its users. */
int main(int count, char **arguments)
{
	(void)arguments;
	if (count > 1)
		expect("read of the kernel", KERNEL, ended_by(read_it, KERNEL), ENDED_ITSELF);
	else
		what_is_forbidden();
	what_is_usual();
	printf("user: %d went wrong\n", wrong);
	return wrong != 0;
}
