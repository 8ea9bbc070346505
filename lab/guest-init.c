// guest-init: the first process of a guest (L2), in the root image (init=/lab/guest-init) and in the initramfs alike.
// It gives a root shell on the console, prompt "guest# ", and powers the guest off when that shell ends. With
// baton.run=BASE64 on the kernel's command line it runs that decoded script instead, then prints "guest: exit STATUS".
// The kernel's command line also understands baton.quiet (no greeting). Built by lab/prepare, installed as /lab/guest-init.
//
// A static program rather than a script, since every program that a guest of the lab starts takes it tens of milliseconds.

#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/input.h>
#include <net/if.h>
#include <poll.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <unistd.h>

#define COMMAND_LINE_SIZE 4096
#define EVENT_DEVICES 8
#define SCRIPT "/tmp/script"

static char console[64] = "/dev/null";
static char command_line[COMMAND_LINE_SIZE];

// What is there already stays.
static void mount_all(void)
{
	static const char *const mounts[][2] = {
		{"proc", "/proc"},     {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"devpts", "/dev/pts"}, {"tmpfs", "/dev/shm"},
		{"tmpfs", "/tmp"},     {"tmpfs", "/run"}, {"debugfs", "/sys/kernel/debug"},
	};
	static const char *const links[][2] = {
		{"/proc/self/fd", "/dev/fd"}, {"fd/0", "/dev/stdin"}, {"fd/1", "/dev/stdout"}, {"fd/2", "/dev/stderr"},
	};

	for (size_t i = 0; i < sizeof(mounts) / sizeof(mounts[0]); i++) {
		(void)mkdir(mounts[i][1], 0755);
		(void)mount(mounts[i][0], mounts[i][1], mounts[i][0], 0, NULL);
	}
	for (size_t i = 0; i < sizeof(links) / sizeof(links[0]); i++)
		(void)!symlink(links[i][0], links[i][1]);
}

// A small file as a string, without its newline; empty if there is none.
static void read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t length = fd < 0 ? 0 : read(fd, text, size - 1);

	text[length > 0 ? length : 0] = '\0';
	text[strcspn(text, "\n")] = '\0';
	if (fd >= 0)
		close(fd);
}

static void loopback_up(void)
{
	struct ifreq request = {.ifr_name = "lo", .ifr_flags = IFF_UP};
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		return;
	(void)ioctl(fd, SIOCSIFFLAGS, &request);
	close(fd);
}

// The last one of the kernel's consoles is the one with a /dev/console.
static void find_console(void)
{
	char active[48];
	const char *last;

	read_file("/sys/class/tty/console/active", active, sizeof(active));
	last = strrchr(active, ' ');
	last = last ? last + 1 : active;
	if (*last)
		snprintf(console, sizeof(console), "/dev/%s", last);
}

static void say(const char *text)
{
	int fd = open(console, O_WRONLY | O_NOCTTY | O_CLOEXEC);

	if (fd < 0)
		return;
	dprintf(fd, "%s\n", text);
	close(fd);
}

static void power_off(void)
{
	sync();
	(void)mount(NULL, "/", NULL, MS_REMOUNT | MS_RDONLY, NULL);
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

// Takes an event of a device; one that has none, and yet is ready, has gone.
static bool is_power_button(struct pollfd *device)
{
	struct input_event event;

	if (read(device->fd, &event, sizeof(event)) != sizeof(event)) {
		device->fd = -1;
		return false;
	}
	return event.type == EV_KEY && event.code == KEY_POWER && event.value == 1;
}

// system_powerdown presses the ACPI power button. A process of its own waits for that.
static void watch_power_button(void)
{
	struct pollfd events[EVENT_DEVICES];
	unsigned count = 0;

	if (fork() != 0)
		return;
	for (unsigned i = 0; i < EVENT_DEVICES; i++) {
		char path[32];

		snprintf(path, sizeof(path), "/dev/input/event%u", i);
		events[count] = (struct pollfd){.fd = open(path, O_RDONLY | O_CLOEXEC), .events = POLLIN};
		if (events[count].fd >= 0)
			count++;
	}
	while (count > 0 && poll(events, count, -1) > 0) {
		for (unsigned i = 0; i < count; i++) {
			if (!events[i].revents || !is_power_button(&events[i]))
				continue;
			say("guest: power button");
			power_off();
		}
	}
	_exit(0);
}

static int base64_value(char character)
{
	static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
	const char *found = character ? strchr(digits, character) : NULL;

	return found ? (int)(found - digits) : -1;
}

static void decode(const char *text, FILE *file)
{
	unsigned bits = 0, count = 0;

	for (; base64_value(*text) >= 0; text++) {
		bits = bits << 6 | (unsigned)base64_value(*text);
		count += 6;
		if (count < 8)
			continue;
		count -= 8;
		fputc((int)(bits >> count & 0xff), file);
	}
}

// Whether there is something to run: the scripts of all baton.run= words, one after the other.
static bool decode_script(void)
{
	static const char key[] = "baton.run=";
	FILE *file = NULL;

	for (const char *word = strstr(command_line, key); word; word = strstr(word + 1, key)) {
		if (!file)
			file = fopen(SCRIPT, "we");
		if (file)
			decode(word + strlen(key), file);
	}
	return file && fclose(file) == 0;
}

// Runs a shell with the console as its controlling terminal, and waits for it as for whatever loses its parent meanwhile.
static int run_on_console(const char *argument)
{
	pid_t shell = fork(), ended;
	int status = 0;

	if (shell == 0) {
		int fd;

		setsid();
		fd = open(console, O_RDWR);
		if (fd < 0)
			fd = open("/dev/null", O_RDWR);
		(void)ioctl(fd, TIOCSCTTY, 1);
		for (int i = 0; i < 3; i++)
			dup2(fd, i);
		if (fd > 2)
			close(fd);
		execl("/bin/sh", "sh", argument, NULL);
		_exit(127);
	}
	do {
		ended = wait(&status);
	} while (ended > 0 && ended != shell);
	return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void set_environment(void)
{
	setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	setenv("TERM", "dumb", 0);
	setenv("LC_ALL", "C.UTF-8", 1);
	setenv("PS1", "guest# ", 1);
	setenv("PS2", "> ", 1);
	setenv("ENV", "", 1);
	setenv("PYTHONDONTWRITEBYTECODE", "1", 1);
}

static void greet(void)
{
	struct utsname name;
	char text[128];

	uname(&name);
	snprintf(text, sizeof(text), "guest: Linux %s, root shell, 'exit' powers off", name.release);
	say(text);
}

int main(void)
{
	char text[32];

	set_environment();
	mount_all();
	(void)!sethostname("guest", strlen("guest"));
	loopback_up();
	find_console();
	klogctl(8, NULL, 4);  // messages of level 4 and above stay off the console
	read_file("/proc/cmdline", command_line, sizeof(command_line));
	watch_power_button();
	if (chdir("/root") < 0)
		(void)!chdir("/");
	if (decode_script()) {
		snprintf(text, sizeof(text), "guest: exit %d", run_on_console(SCRIPT));
		say(text);
	} else {
		if (!strstr(command_line, "baton.quiet"))
			greet();
		run_on_console("-i");
	}
	power_off();
}
