/* SPDX-License-Identifier: Apache-2.0 OR MIT OR GPL-2.0-only */
/*
 * A guest that says what state it has been given, spoils all of it, and restarts; for ever. What it
 * says has to be the same each time (PV-STATE-1).
 */
#define guest not_this_one
#include "guest.c"
#undef guest

__attribute__((noreturn)) void guest(void)
{
	volatile struct paravane_console_page *page;
	volatile uint8_t *bytes;
	uint64_t sum = 0;

	if (!find_host())
		not_this_one();
	page = (void *)info.console.address;
	/* Boot-info but for the clock, which goes on; then the console page. */
	for (unsigned int i = 0; i < sizeof(info); i++) {
		if (i < offsetof(struct paravane_boot_info, clock) ||
		    i >= offsetof(struct paravane_boot_info, console))
			sum = sum * 31 + ((uint8_t *)&info)[i];
	}
	bytes = (volatile uint8_t *)page;
	for (unsigned int i = 0; i < PARAVANE_PAGE_SIZE; i++)
		sum = sum * 31 + bytes[i];
	print_number("state ", sum);

	ring_write("spoilt\n", 7);
	call(PARAVANE_CALL_CONSOLE_EVENT, 0x41, 0);
	for (unsigned int i = 0; i < PARAVANE_PAGE_SIZE; i++)
		bytes[i] = 0xa5;
	call(PARAVANE_CALL_BASE_POWER, PARAVANE_POWER_REBOOT, PARAVANE_POWER_REASON_NONE);
	for (;;)
		__asm__ volatile("cli; hlt");
}
