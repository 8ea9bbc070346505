// observer: the host's half of "observing the blackout from outside" (lab/README.md).
// Run in L1 by tests and benchmarks. It maps one page of a monitor's RAM memfd read-only, through /proc/PID/fd/N, polls the
// counter that lab/heartbeat keeps there, and says when the counter stood still. It works on any monitor whose RAM is a
// memfd, and keeps watching when PID has gone, since the successor runs the guest in the same memfd.
//
// A silence is counted from the first poll that saw a value to the last poll that still saw it (`ns`): a time in which the
// guest certainly did not beat. `at_most_ns` is from the poll before to the poll after. When the observer itself was not
// run for a while, it saw nothing of that time: `longest_poll_gap_ns` says how long that was at worst.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096ull
#define MAX_SILENCES 65536
#define MAX_SLOTS 65536

struct silence {
	uint64_t start, end;  // CLOCK_MONOTONIC, ns: first and last poll that saw the same value
	uint64_t before, after;  // the polls around them
};

struct watch {
	uint64_t threshold;
	uint64_t rest;  // ns of sleep between polls
	struct silence longest;
	struct silence *list;
	size_t n_list, n_over;
	uint64_t polls, beats, longest_poll_gap;
	uint64_t first, last;
	uint64_t slot_ns;  // 0: beats are not counted by slots
	uint32_t *slots;
	size_t n_slots;
};

static volatile sig_atomic_t stop;

static void on_signal(int signal_number)
{
	(void)signal_number;
	stop = 1;
}

static uint64_t now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t number(const char *text, const char *what)
{
	char *end = NULL;

	errno = 0;
	uint64_t value = strtoull(text, &end, 0);
	if (errno != 0 || *text == '\0' || *end != '\0') {
		fprintf(stderr, "observer: %s: '%s' is not a number\n", what, text);
		exit(2);
	}
	return value;
}

static const volatile uint64_t *map_counter(const char *pid, const char *fd_number, uint64_t offset)
{
	char path[128];

	snprintf(path, sizeof path, "/proc/%s/fd/%s", pid, fd_number);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		fprintf(stderr, "observer: %s: %s\n", path, strerror(errno));
		exit(1);
	}
	char *page = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, (off_t)(offset & ~(PAGE - 1)));
	if (page == MAP_FAILED) {
		fprintf(stderr, "observer: %s at 0x%" PRIx64 ": %s\n", path, offset, strerror(errno));
		exit(1);
	}
	close(fd);
	return (const volatile uint64_t *)(page + (offset & (PAGE - 1)));
}

static void record(struct watch *w, const struct silence *s)
{
	uint64_t length = s->end - s->start;

	if (length > w->longest.end - w->longest.start)
		w->longest = *s;
	if (length < w->threshold)
		return;
	if (w->n_list < MAX_SILENCES)
		w->list[w->n_list++] = *s;
	w->n_over++;
}

// Beats belong to the slot of time in which they were seen.
static void count_in_slot(struct watch *w, uint64_t now, uint64_t beats)
{
	if (w->slot_ns == 0)
		return;
	size_t slot = (now - w->first) / w->slot_ns;
	if (slot >= MAX_SLOTS)
		return;
	w->slots[slot] += (uint32_t)beats;
	w->n_slots = slot + 1;
}

static void rest(uint64_t ns)
{
	if (ns == 0)
		return;
	struct timespec t = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
	nanosleep(&t, NULL);
}

static void watch_counter(struct watch *w, const volatile uint64_t *counter, uint64_t deadline)
{
	uint64_t value = *counter, previous = now_ns();
	struct silence s = {.start = previous, .end = previous, .before = previous};

	w->first = previous;
	while (!stop && previous < deadline) {
		uint64_t seen = *counter, now = now_ns();

		w->polls++;
		if (now - previous > w->longest_poll_gap)
			w->longest_poll_gap = now - previous;
		if (seen != value) {
			s.after = now;
			record(w, &s);
			w->beats += seen - value;
			count_in_slot(w, now, seen - value);
			value = seen;
			s = (struct silence){.start = now, .before = previous};
		}
		s.end = now;
		previous = now;
		rest(w->rest);
	}
	s.after = s.end;
	record(w, &s);
	w->last = previous;
}

static void print_silence(const struct silence *s)
{
	printf("{\"ns\": %" PRIu64 ", \"at_most_ns\": %" PRIu64 ", \"start\": %" PRIu64 ", \"end\": %" PRIu64 "}",
	       s->end - s->start, s->after - s->before, s->start, s->end);
}

static void print_report(const struct watch *w)
{
	printf("{\"longest_ns\": %" PRIu64 ", \"longest\": ", w->longest.end - w->longest.start);
	print_silence(&w->longest);
	printf(", \"threshold_ns\": %" PRIu64 ", \"over_threshold\": %zu, \"silences\": [", w->threshold, w->n_over);
	for (size_t i = 0; i < w->n_list; i++) {
		printf("%s\n  ", i == 0 ? "" : ",");
		print_silence(&w->list[i]);
	}
	printf("%s], \"first\": %" PRIu64 ", \"slots\": [", w->n_list == 0 ? "" : "\n", w->first);
	for (size_t i = 0; i < w->n_slots; i++)
		printf("%s%" PRIu32, i == 0 ? "" : ", ", w->slots[i]);
	printf("], \"beats\": %" PRIu64 ", \"polls\": %" PRIu64 ", \"watched_ns\": %" PRIu64
	       ", \"longest_poll_gap_ns\": %" PRIu64 "}\n",
	       w->beats, w->polls, w->last - w->first, w->longest_poll_gap);
}

static const char usage_text[] =
	"usage: observer [--seconds N] [--threshold-ns N] [--rest-ns N] [--slot-ns N] PID FD OFFSET\n"
	"Watches the 64-bit counter at OFFSET of the file that PID has open as FD, until SIGTERM or SIGINT or for N seconds,\n"
	"then prints its longest silence, and every silence of at least the threshold (default 1000000 ns), as JSON.\n"
	"--rest-ns is for how long to sleep between polls: 0, the default, keeps one processor busy.\n"
	"--slot-ns adds how many beats were seen in each slot of so many ns, counted from \"first\".\n"
	"Times are CLOCK_MONOTONIC nanoseconds. Prints 'observing' on standard error once it watches.\n";

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{"seconds", required_argument, NULL, 's'},
		{"threshold-ns", required_argument, NULL, 't'},
		{"rest-ns", required_argument, NULL, 'r'},
		{"slot-ns", required_argument, NULL, 'l'},
		{"help", no_argument, NULL, 'h'},
		{NULL, 0, NULL, 0},
	};
	struct watch w = {.threshold = 1000000};
	uint64_t seconds = 0;
	int option;

	while ((option = getopt_long(argc, argv, "s:t:r:l:h", options, NULL)) != -1) {
		switch (option) {
		case 's':
			seconds = number(optarg, "--seconds");
			break;
		case 't':
			w.threshold = number(optarg, "--threshold-ns");
			break;
		case 'r':
			w.rest = number(optarg, "--rest-ns");
			break;
		case 'l':
			w.slot_ns = number(optarg, "--slot-ns");
			break;
		case 'h':
			fputs(usage_text, stdout);
			return 0;
		default:
			fputs(usage_text, stderr);
			return 2;
		}
	}
	if (argc - optind != 3) {
		fputs(usage_text, stderr);
		return 2;
	}
	uint64_t offset = number(argv[optind + 2], "OFFSET");
	if (offset % sizeof(uint64_t) != 0) {
		fprintf(stderr, "observer: OFFSET: 0x%" PRIx64 " is not a multiple of 8\n", offset);
		return 2;
	}
	const volatile uint64_t *counter = map_counter(argv[optind], argv[optind + 1], offset);

	w.list = calloc(MAX_SILENCES, sizeof *w.list);
	w.slots = calloc(MAX_SLOTS, sizeof *w.slots);
	if (!w.list || !w.slots) {
		perror("observer");
		return 1;
	}
	struct sigaction action = {.sa_handler = on_signal};
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	fprintf(stderr, "observing\n");
	watch_counter(&w, counter, seconds ? now_ns() + seconds * 1000000000u : UINT64_MAX);
	print_report(&w);
	return 0;
}
