// heartbeat: the guest's half of "observing the blackout from outside" (lab/README.md).
// A guest runs it; it counts upwards, as fast as it can, in a page of guest memory that the kernel was told to leave alone
// (memmap=64K$0x8000000 on its command line). lab/observer watches the same page from the host.
// Built by lab/prepare, installed in the guest images as /lab/heartbeat.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#define DEFAULT_PHYSICAL_ADDRESS 0x8000000ull
#define PAGE 4096ull

int main(int argc, char **argv)
{
	uint64_t physical = DEFAULT_PHYSICAL_ADDRESS;
	char *end = NULL;

	if (argc > 2) {
		fprintf(stderr, "usage: heartbeat [PHYSICAL-ADDRESS]   (default 0x8000000)\n");
		return 2;
	}
	if (argc == 2) {
		physical = strtoull(argv[1], &end, 0);
		if (*argv[1] == '\0' || *end != '\0' || physical % PAGE != 0) {
			fprintf(stderr, "heartbeat: %s is not the address of a page\n", argv[1]);
			return 2;
		}
	}

	int fd = open("/dev/mem", O_RDWR | O_SYNC | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "heartbeat: /dev/mem: %s\n", strerror(errno));
		return 1;
	}
	volatile uint64_t *counter = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)physical);
	if (counter == MAP_FAILED) {
		fprintf(stderr, "heartbeat: page 0x%llx: %s (is memmap=64K$0x8000000 on the kernel's command line?)\n",
			(unsigned long long)physical, strerror(errno));
		return 1;
	}
	(void)setpriority(PRIO_PROCESS, 0, -20);  // only root may; without it the count is merely less steady
	for (;;)
		++*counter;
}
