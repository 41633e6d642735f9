/*
 * netlab: links between network namespaces of one machine, emulated in user space.
 *
 *     netlab run SOCKET FILE [--owner]    carry out the lines of FILE, say "ready", then serve SOCKET
 *     netlab simulate [KEY=VALUE] ...     try the link's arithmetic without devices
 *
 * It ends on SIGTERM or SIGINT, and with --owner when its standard input ends: a pipe whose other
 * end is held by whoever started it.
 */
#define _GNU_SOURCE
#include "command.h"
#include "simulate.h"
#include "wire.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

static int fail(const char *what)
{
    fprintf(stderr, "netlab: %s: %s\n", what, strerror(errno));
    return 1;
}

/* Carries out a file of commands. Returns 0, or 1 after saying why not. */
static int carry_out(const char *path)
{
    char line[COMMAND_MAX];
    FILE *file = fopen(path, "re");
    int number = 0, refused = 0;

    if (!file)
        return fail(path);
    while (!refused && fgets(line, sizeof line, file)) {
        char *answer = NULL;
        size_t size;
        FILE *out = open_memstream(&answer, &size);

        number++;
        if (!out)
            break;
        refused = command_run(line, out);
        fclose(out);
        if (refused)
            fprintf(stderr, "netlab: %s:%d: %s\n", path, number, answer);
        free(answer);
    }
    fclose(file);
    return refused ? 1 : 0;
}

static int listen_at(const char *path)
{
    struct sockaddr_un address = { .sun_family = AF_UNIX };
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(address.sun_path, path);
    unlink(path);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 8) < 0)
        return -1;
    return fd;
}

/* One request, one answer, each a message; nobody may keep us waiting for either. */
static void serve(int listener)
{
    const struct timeval patience = { .tv_sec = 1 };
    int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC), most = 1 << 20;
    char line[COMMAND_MAX], *answer = NULL;
    size_t size = 0;
    FILE *out;
    ssize_t got;

    if (client < 0)
        return;
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    setsockopt(client, SOL_SOCKET, SO_SNDBUFFORCE, &most, sizeof most);
    got = recv(client, line, sizeof line - 1, MSG_TRUNC);
    out = got > 0 ? open_memstream(&answer, &size) : NULL;
    if (out) {
        if (got > (ssize_t)sizeof line - 1 || memchr(line, 0, (size_t)got)) {
            fputs("{\"error\":\"a line has at most 4095 bytes and none is zero\"}", out);
        } else {
            line[got] = 0;
            command_run(line, out);
        }
        fclose(out);
        if (send(client, answer, size, MSG_NOSIGNAL) < 0)
            fail("answer to a client");
        free(answer);
    }
    close(client);
}

static int serve_until_told(const char *path, int owned)
{
    sigset_t signals;
    int listener, signalled;

    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);     /* before the threads, which inherit it */
    signalled = signalfd(-1, &signals, SFD_CLOEXEC);
    listener = listen_at(path);
    if (signalled < 0 || listener < 0)
        return fail(path);
    if (command_start())
        return fail("start a thread");
    puts("ready");
    fflush(stdout);
    for (;;) {
        struct pollfd waits[] = {
            { .fd = signalled, .events = POLLIN },
            { .fd = listener, .events = POLLIN },
            { .fd = owned ? STDIN_FILENO : -1, .events = POLLIN },
        };

        if (poll(waits, 3, -1) < 0)
            continue;
        if (waits[0].revents || waits[2].revents)
            break;
        if (waits[1].revents)
            serve(listener);
    }
    command_stop();
    unlink(path);
    return 0;
}

int main(int count, char **words)
{
    int owned = count == 5 && !strcmp(words[4], "--owner");

    if (count >= 2 && !strcmp(words[1], "simulate"))
        return simulate(count - 2, words + 2);
    if ((count != 4 && !owned) || strcmp(words[1], "run")) {
        fputs("usage: netlab run SOCKET FILE [--owner]\n       netlab simulate [KEY=VALUE] ...\n",
              stderr);
        return 2;
    }
    wire_begin_clock();
    return carry_out(words[3]) || serve_until_told(words[2], owned);
}
