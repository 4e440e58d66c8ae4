/*
 * One side of a stream between a guest and its host: says one word, and prints the one that comes.
 *
 *   peer file PATH WORD | unix PATH WORD | vsock CID:PORT WORD | listen PORT WORD
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

static int try_to_open(const char *how, const char *where)
{
	struct sockaddr_vm vm = { .svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY };
	struct sockaddr_un un = { .sun_family = AF_UNIX };
	int fd;

	if (!strcmp(how, "file"))
		return open(where, O_RDWR);
	if (!strcmp(how, "unix")) {
		snprintf(un.sun_path, sizeof(un.sun_path), "%s", where);
		fd = socket(AF_UNIX, SOCK_STREAM, 0);
		return connect(fd, (void *)&un, sizeof(un)) ? -1 : fd;
	}
	fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (!strcmp(how, "vsock")) {
		sscanf(where, "%u:%u", &vm.svm_cid, &vm.svm_port);
		return connect(fd, (void *)&vm, sizeof(vm)) ? -1 : fd;
	}
	vm.svm_port = atoi(where);
	if (bind(fd, (void *)&vm, sizeof(vm)) || listen(fd, 1))
		return -1;
	return accept(fd, NULL, NULL);
}

int main(int argc, char **argv)
{
	char word[64] = "";
	int fd = -1;

	/* The other side may not be there yet. */
	for (int try = 0; argc == 4 && fd < 0 && try < 300; try++) {
		if (try)
			usleep(100000);
		fd = try_to_open(argv[1], argv[2]);
	}
	if (fd < 0) {
		perror("peer");
		return 1;
	}
	dprintf(fd, "%s\n", argv[3]);
	for (size_t n = 0; n < sizeof(word) - 1 && read(fd, word + n, 1) == 1 && word[n] != '\n'; n++)
		;
	printf("heard %s", word);
	return 0;
}
