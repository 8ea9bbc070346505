// heartbeat: the guest's half of "observing the blackout from outside" (lab/README.md).
// A guest runs it; it counts upwards, as fast as it can, in a page of guest memory that the kernel was told to leave alone
// (memmap=64K$0x8000000 on its command line). lab/observer watches the same page from the host.
// With --reads DEVICE a second process reads from that drive, one block after the other, past the page cache, and keeps beside
// the count how many reads there were and how many nanoseconds the slowest took: who watches may set that back to 0.
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
#include <time.h>
#include <unistd.h>

#define DEFAULT_PHYSICAL_ADDRESS 0x8000000ull
#define PAGE 4096ull

// The page.
enum { BEATS, READS, SLOWEST_READ };

static const char usage_text[] = "usage: heartbeat [--reads DEVICE] [PHYSICAL-ADDRESS]   (default 0x8000000)\n";

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static volatile uint64_t *map_page(uint64_t physical)
{
	int fd = open("/dev/mem", O_RDWR | O_SYNC | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "heartbeat: /dev/mem: %s\n", strerror(errno));
		exit(1);
	}
	volatile uint64_t *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)physical);
	if (page == MAP_FAILED) {
		fprintf(stderr, "heartbeat: page 0x%llx: %s (is memmap=64K$0x8000000 on the kernel's command line?)\n",
			(unsigned long long)physical, strerror(errno));
		exit(1);
	}
	return page;
}

static void read_for_ever(volatile uint64_t *page, const char *device)
{
	int fd = open(device, O_RDONLY | O_DIRECT | O_CLOEXEC);
	void *block = aligned_alloc(PAGE, PAGE);

	for (;;) {
		uint64_t start = now_ns(), took;

		if (fd < 0 || !block || pread(fd, block, PAGE, 0) != (ssize_t)PAGE) {
			fprintf(stderr, "heartbeat: %s: %s\n", device, strerror(errno));
			exit(1);
		}
		took = now_ns() - start;
		page[READS]++;
		if (took > page[SLOWEST_READ])
			page[SLOWEST_READ] = took;
	}
}

int main(int argc, char **argv)
{
	uint64_t physical = DEFAULT_PHYSICAL_ADDRESS;
	const char *device = NULL;
	char *end = NULL;

	if (argc > 2 && strcmp(argv[1], "--reads") == 0) {
		device = argv[2];
		argc -= 2;
		argv += 2;
	}
	if (argc > 2) {
		fputs(usage_text, stderr);
		return 2;
	}
	if (argc == 2) {
		physical = strtoull(argv[1], &end, 0);
		if (*argv[1] == '\0' || *end != '\0' || physical % PAGE != 0) {
			fprintf(stderr, "heartbeat: %s is not the address of a page\n", argv[1]);
			return 2;
		}
	}

	volatile uint64_t *page = map_page(physical);
	if (device && fork() == 0)
		read_for_ever(page, device);
	if (!device)
		(void)setpriority(PRIO_PROCESS, 0, -20);  // only root may; without it the count is merely less steady
	for (;;)
		++page[BEATS];
}
