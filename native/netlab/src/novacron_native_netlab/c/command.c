#define _GNU_SOURCE
#include "command.h"

#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <net/if.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WIRES_MAX 512
#define TRACE_LINES_MAX (16u << 20)
#define WORDS_MAX 24

static struct wire *wires[WIRES_MAX];
static int wire_count, started;

static const struct {
    const char *name;
    size_t offset;
} keys[] = {
    { "rate", offsetof(struct figures, rate) },
    { "delay", offsetof(struct figures, delay) },
    { "jitter", offsetof(struct figures, jitter) },
    { "loss", offsetof(struct figures, loss) },
    { "burst_begin", offsetof(struct figures, burst_begin) },
    { "burst_end", offsetof(struct figures, burst_end) },
    { "burst_loss", offsetof(struct figures, burst_loss) },
    { "queue", offsetof(struct figures, queue) },
    { "reorder", offsetof(struct figures, reorder) },
    { "reorder_by", offsetof(struct figures, reorder_by) },
};

/* ------------------------------------------------------------------ reading */

static int number(const char *text, double *value)
{
    char *end;

    /* strtod takes more than we want to: blanks, "nan", "inf", hexadecimal. */
    if (!*text || strspn(text, "0123456789.e+-") != strlen(text))
        return -1;
    *value = strtod(text, &end);
    return *end || !isfinite(*value) ? -1 : 0;
}

static int whole(const char *text, double most, uint64_t *value)
{
    double read;

    if (number(text, &read) || read < 0 || read > most || read != floor(read))
        return -1;
    *value = (uint64_t)read;
    return 0;
}

int command_figure(struct figures *figures, char *word, const char **reason)
{
    char *equals = strchr(word, '=');

    *reason = "a figure is KEY=VALUE";
    if (!equals)
        return -1;
    *equals = 0;
    *reason = "unknown figure";
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!strcmp(word, keys[i].name)) {
            *reason = "not a number";
            return number(equals + 1, (double *)(void *)((char *)figures + keys[i].offset));
        }
    return -1;
}

int command_read_trace(const char *path, struct trace *trace, const char **reason)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    FILE *file = fd < 0 ? NULL : fdopen(fd, "r");
    size_t room = 0;
    unsigned long last = 0;
    char line[64];
    struct stat about;

    memset(trace, 0, sizeof *trace);
    *reason = "it cannot be opened";
    if (!file) {
        if (fd >= 0)
            close(fd);
        return -1;
    }
    *reason = "it is no file";
    if (fstat(fd, &about) || !S_ISREG(about.st_mode))
        goto fail;
    while (fgets(line, sizeof line, file)) {
        char *end;
        unsigned long at;

        *reason = "a line is not a number of milliseconds up to 1000000000";
        errno = 0;
        at = strtoul(line, &end, 10);
        if (line[0] < '0' || line[0] > '9' || errno || at > 1000000000u ||
            end[strspn(end, "\r\n")])
            goto fail;
        *reason = "its times fall";
        if (at < last)
            goto fail;
        *reason = "it has more than 16777216 lines";
        if (trace->count == TRACE_LINES_MAX)
            goto fail;
        if (trace->count == room) {
            void *more = realloc(trace->at_ms, (room = room * 2 + 1024) * sizeof *trace->at_ms);

            *reason = "there is not enough memory for it";
            if (!more)
                goto fail;
            trace->at_ms = more;
        }
        trace->at_ms[trace->count++] = (uint32_t)at;
        last = at;
    }
    *reason = "its last time must be more than 0";
    if (!last)
        goto fail;
    fclose(file);
    return 0;
fail:
    fclose(file);
    free(trace->at_ms);
    memset(trace, 0, sizeof *trace);
    return -1;
}

void command_print_text(FILE *out, const char *text)
{
    putc('"', out);
    for (; *text; text++) {
        unsigned char c = (unsigned char)*text;

        if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20 || c >= 0x7f)
            fprintf(out, "\\u%04x", c);
        else
            putc(c, out);
    }
    putc('"', out);
}

static int refuse(FILE *out, const char *what, const char *detail)
{
    char text[512];

    snprintf(text, sizeof text, detail ? "%s: %.300s" : "%s", what, detail);
    fputs("{\"error\":", out);
    command_print_text(out, text);
    fputs("}", out);
    return -1;
}

static int done(FILE *out)
{
    fputs("{}", out);
    return 0;
}

static struct wire *find(const char *name)
{
    for (int i = 0; i < wire_count; i++)
        if (!strcmp(wires[i]->name, name))
            return wires[i];
    return NULL;
}

/* ----------------------------------------------------------------- commands */

static int make_pair(char **words, FILE *out)
{
    const char *netns[] = { words[3], words[5] }, *device[] = { words[4], words[6] };
    uint64_t offload, seed;
    int tun[2], room = wire_count + 2 <= WIRES_MAX;

    if (started || !room)
        return refuse(out, started ? "pairs are made before the start" : "too many pairs", NULL);
    if (whole(words[7], 1, &offload) || whole(words[8], 1e15, &seed))
        return refuse(out, "pair: OFFLOAD is 0 or 1, SEED a whole number", NULL);
    for (int i = 0; i < 2; i++) {
        const char *step;

        if (strlen(words[1 + i]) >= WIRE_NAME_MAX || find(words[1 + i]) ||
            strlen(device[i]) >= IFNAMSIZ || strlen(netns[i]) > 200 || strchr(netns[i], '/'))
            return refuse(out, "pair: a name is too long, taken or has a slash", words[1 + i]);
        tun[i] = wire_open_tun(netns[i], device[i], (int)offload, &step);
        if (tun[i] < 0) {
            char detail[300];

            snprintf(detail, sizeof detail, "%s, %s: %s", netns[i], device[i], strerror(errno));
            return refuse(out, step, detail);
        }
    }
    for (int i = 0; i < 2; i++) {
        struct wire *wire = malloc(sizeof *wire);

        if (!wire || wire_init(wire, words[1 + i], tun[i], tun[!i], (int)offload, seed * 2 + (unsigned)i))
            return refuse(out, "out of memory", NULL);
        wires[wire_count++] = wire;
    }
    return done(out);
}

static int set_figures(struct wire *wire, char **words, int count, FILE *out)
{
    const char *reason;
    struct figures figures = wire->link.figures;        /* only this thread sets them */
    int refused;

    for (int i = 0; i < count; i++)
        if (command_figure(&figures, words[i], &reason))
            return refuse(out, reason, words[i]);
    pthread_mutex_lock(&wire->lock);
    refused = wire_set(wire, &figures, &reason);
    if (!refused)
        wire_wake(wire);
    pthread_mutex_unlock(&wire->lock);
    return refused ? refuse(out, reason, NULL) : done(out);
}

static int set_trace(struct wire *wire, const char *path, FILE *out)
{
    struct trace trace = { 0 };
    const char *reason;

    if (strcmp(path, "-") && command_read_trace(path, &trace, &reason)) {
        char detail[400];

        snprintf(detail, sizeof detail, "%.300s: %s", path, reason);
        return refuse(out, "trace", detail);
    }
    pthread_mutex_lock(&wire->lock);
    link_set_trace(&wire->link, trace);
    wire_wake(wire);
    pthread_mutex_unlock(&wire->lock);
    return done(out);
}

static int add_outage(struct wire *wire, char **words, FILE *out)
{
    uint64_t after, length, now = wire_now();
    int refused;

    if (whole(words[0], 1e15, &after) || whole(words[1], 1e15, &length) || !length)
        return refuse(out, "outage: AFTER and LENGTH are nanoseconds up to 1e15", NULL);
    pthread_mutex_lock(&wire->lock);
    refused = link_add_outage(&wire->link, now + after, now + after + length, now);
    wire_wake(wire);
    pthread_mutex_unlock(&wire->lock);
    return refused ? refuse(out, "outage: 256 of them are waiting already", NULL) : done(out);
}

static int print_stats(FILE *out)
{
    fprintf(out, "{\"elapsed_s\":%.6f,\"wires\":{", (double)wire_now() * 1e-9);
    for (int i = 0; i < wire_count; i++) {
        if (i)
            putc(',', out);
        command_print_text(out, wires[i]->name);
        putc(':', out);
        wire_print(out, wires[i]);
    }
    fputs("}}", out);
    return 0;
}

int command_run(char *line, FILE *out)
{
    char *words[WORDS_MAX + 1], *rest = NULL;
    int count = 0;

    for (char *word = strtok_r(line, " \n", &rest); word; word = strtok_r(NULL, " \n", &rest)) {
        if (count == WORDS_MAX)
            return refuse(out, "a line has at most 24 words", NULL);
        words[count++] = word;
    }
    if (!count)
        return refuse(out, "an empty line", NULL);
    words[count] = NULL;
    if (!strcmp(words[0], "stats") && count == 1)
        return print_stats(out);
    if (!strcmp(words[0], "pair") && count == 9)
        return make_pair(words, out);
    if (count >= 3) {
        struct wire *wire = find(words[1]);

        if (!wire)
            return refuse(out, "there is no wire of this name", words[1]);
        if (!strcmp(words[0], "set"))
            return set_figures(wire, words + 2, count - 2, out);
        if (!strcmp(words[0], "trace") && count == 3)
            return set_trace(wire, words[2], out);
        if (!strcmp(words[0], "outage") && count == 4)
            return add_outage(wire, words + 2, out);
    }
    return refuse(out, "unknown command, or the wrong number of words", words[0]);
}

int command_start(void)
{
    started = 1;
    for (int i = 0; i < wire_count; i++)
        if (wire_start(wires[i])) {
            wire_count = i;
            return -1;
        }
    return 0;
}

void command_stop(void)
{
    for (int i = 0; i < wire_count; i++)
        wire_stop(wires[i]);
}
