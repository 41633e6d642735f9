/* What lives in the benchmark's guest: it beats, it works, and it proves that its memory is whole.
 *
 * Every few milliseconds it writes a line to a serial port, so that whoever listens outside knows
 * when the guest stood still:
 *
 *     b COUNT MICROSECONDS WRITES ERRORS        (hexadecimal; the guest's own clock)
 *
 * "ready" comes before the first of them, once the memory is filled. To the line "check" it answers
 *
 *     c SUM ERRORS
 *
 * where SUM is that of the disk as the page cache holds it, and ERRORS counts records and heap pages
 * that do not hold what was written there. Settings come from the environment, which the kernel
 * makes of its command line: workload, rate, set, heap, seed, beat.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { PAGE = 4096, BLOCK = 1 << 20, EXTENT = 256 << 10 };

struct shared {
    volatile uint64_t ready, writes, errors, asked, answered, sum;
};

struct record {
    uint64_t key, version;
    char payload[];
};

enum style { BYTES, TEXT };

static struct shared *shared;
static uint8_t *heap;
static uint64_t heap_pages, seed;
static const char *device = "/dev/vda";

static uint64_t number(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text ? strtoull(text, NULL, 10) : otherwise;
}

static double real(const char *name, double otherwise) {
    const char *text = getenv(name);
    return text ? strtod(text, NULL) : otherwise;
}

static uint64_t now_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000u + (uint64_t)at.tv_nsec / 1000u;
}

static void *memory(uint64_t bytes) {
    void *made = mmap(NULL, bytes ? bytes : PAGE, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (made == MAP_FAILED) {
        perror("agent: no memory");
        exit(1);
    }
    return made;
}

/* splitmix64: well spread even for seeds that are next to each other. */
static uint64_t draw(uint64_t *state) {
    uint64_t z = (*state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

static void put_bytes(char *at, size_t length, uint64_t state) {
    for (; length >= 8; at += 8, length -= 8) {
        uint64_t value = draw(&state);
        memcpy(at, &value, 8);
    }
}

static char words[1024][8];

static void make_words(void) {
    uint64_t state = 5;
    for (int word = 0; word < 1024; word++) {
        uint64_t drawn = draw(&state);
        size_t length = 3 + drawn % 5;
        memset(words[word], ' ', 8);
        for (size_t i = 0; i < length; i++)
            words[word][i] = (char)((drawn % 7 ? 'a' : '0') + (drawn >> (8 + 5 * i)) % (drawn % 7 ? 26 : 10));
    }
}

/* Words and numbers, as the values of a database are; they are the same in every guest. */
static void put_text(char *at, size_t length, uint64_t state) {
    while (length >= 8) {
        uint64_t drawn = draw(&state);
        for (int i = 0; i < 6 && length >= 8; i++, at += 8, length -= 8, drawn >>= 10)
            memcpy(at, words[drawn & 1023], 8);
    }
}

/* What a program's heap holds that is in no file: text, tables of pointers, buffers, and gaps. */
static void heap_page(uint64_t index, char *page) {
    uint64_t state = seed * 0x100000001b3u + index;
    uint64_t base = 0x7f0000000000u + (draw(&state) & 0xffffff000u);
    memset(page, 0, PAGE);
    switch (draw(&state) % 8) {
    case 0:
        put_bytes(page, PAGE / 4, state);
        break;
    case 1:
    case 2:
    case 3:
        for (size_t at = 0; at < PAGE; at += 32) {
            uint64_t entry[4] = {base + (draw(&state) & 0xffff0u), at / 32, draw(&state) & 0xff, 0};
            memcpy(page + at, entry, sizeof entry);
        }
        break;
    default:
        put_text(page, PAGE, state);
    }
}

static uint64_t heap_errors(void) {
    char wanted[PAGE];
    uint64_t errors = 0;
    for (uint64_t index = 0; index < heap_pages; index++) {
        heap_page(index, wanted);
        errors += memcmp(heap + index * PAGE, wanted, PAGE) != 0;
    }
    return errors;
}

/* Read the whole disk through the page cache; the weighted sum of its 64-bit words. */
static uint64_t disk_sum(void) {
    static uint64_t block[BLOCK / 8];
    uint64_t sum = 0, weight = 1;
    int file = open(device, O_RDONLY);
    if (file < 0) return 0;
    for (ssize_t got; (got = read(file, block, BLOCK)) > 0;)
        for (ssize_t i = 0; i < got / 8; i++, weight += 2) sum += block[i] * weight;
    close(file);
    return sum;
}

static void rest(uint64_t *due_us, uint64_t step_us) {
    *due_us += step_us;
    uint64_t now = now_us();
    if (*due_us > now)
        usleep((useconds_t)(*due_us - now));
    else if (now - *due_us > 1000000u)
        *due_us = now; /* what a long standstill has cost is not made up for */
}

/* A store of records: some are written anew, others are read and compared with what they must be. */
static void store(uint64_t set_bytes, double rate, size_t unit, enum style style) {
    uint64_t slots = set_bytes / unit, state = seed + 77, due = now_us(), looked = 0;
    uint8_t *set = memory(set_bytes);
    char *wanted = malloc(unit);
    size_t length = unit - sizeof(struct record);
    void (*put)(char *, size_t, uint64_t) = style == TEXT ? put_text : put_bytes;
    double owed = 0;

    for (uint64_t slot = 0; slot < slots; slot++) {
        struct record *record = (struct record *)(set + slot * unit);
        record->key = slot;
        put(record->payload, length, slot * 31 + record->version);
    }
    shared->ready = 1;
    for (;;) {
        /* The rate counts memory that becomes dirty, which is a page per record. */
        for (owed += rate * 2e-3 / PAGE; owed >= 1; owed -= 1, shared->writes++) {
            struct record *record = (struct record *)(set + draw(&state) % slots * unit);
            record->version++;
            put(record->payload, length, record->key * 31 + record->version);
        }
        struct record *record = (struct record *)(set + looked * unit);
        put(wanted, length, looked * 31 + record->version);
        shared->errors += record->key != looked || memcmp(wanted, record->payload, length) != 0;
        looked = (looked + 1) % slots;
        rest(&due, 2000);
    }
}

/* A file server: parts of the disk leave the page cache and come back somewhere else in memory. */
static void files(double rate) {
    static char extent[EXTENT];
    int file = open(device, O_RDONLY);
    uint64_t extents = (uint64_t)lseek(file, 0, SEEK_END) / EXTENT, state = seed + 78, due = now_us();
    shared->ready = 1;
    for (;; shared->writes++) {
        off_t at = (off_t)(draw(&state) % extents * EXTENT);
        posix_fadvise(file, at, EXTENT, POSIX_FADV_DONTNEED);
        if (pread(file, extent, EXTENT, at) != EXTENT) shared->errors++;
        rest(&due, (uint64_t)(EXTENT / rate * 1e6));
    }
}

static void work(void) {
    const char *name = getenv("workload") ? getenv("workload") : "idle";
    double rate = real("rate", 2) * 1e6;
    uint64_t set = number("set", 64) << 20;

    disk_sum();
    for (uint64_t index = 0; index < heap_pages; index++) heap_page(index, (char *)heap + index * PAGE);
    if (!strcmp(name, "writer")) store(set, rate, PAGE, BYTES);
    if (!strcmp(name, "kv")) store(set, rate, 1024, TEXT);
    if (!strcmp(name, "thrash")) store(set, rate, 64, TEXT);
    if (!strcmp(name, "files")) files(rate);
    shared->ready = 1;
    if (strcmp(name, "idle")) {
        char script[256];
        snprintf(script, sizeof script, "/workloads/%s", name);
        setenv("device", device, 1);
        execl("/bin/busybox", "sh", script, (char *)NULL);
        shared->errors++;
    }
    for (;;) pause();
}

static void check(void) {
    for (;;) {
        if (shared->asked != shared->answered) {
            shared->sum = disk_sum();
            shared->errors += heap_errors();
            shared->answered = shared->asked;
        }
        usleep(5000);
    }
}

static void apart(void (*what)(void)) {
    if (fork() == 0) {
        what();
        _exit(1);
    }
}

int main(int argc, char **argv) {
    int port = open(argc > 1 ? argv[1] : "/dev/ttyS1", O_RDWR | O_NOCTTY | O_NONBLOCK);
    uint64_t beat_us = number("beat", 5) * 1000, due = 0, told = 0;
    char line[64];
    size_t filled = 0;
    struct termios raw;

    if (port < 0 || tcgetattr(port, &raw)) {
        perror("agent: the port");
        return 1;
    }
    cfmakeraw(&raw);
    tcsetattr(port, TCSANOW, &raw);
    fcntl(port, F_SETFL, 0);
    seed = number("seed", 1);
    make_words();
    shared = memory(sizeof *shared);
    heap_pages = number("heap", 0) << 8;
    heap = memory(heap_pages * PAGE);
    apart(work);
    apart(check);
    while (!shared->ready) usleep(10000);
    dprintf(port, "ready\n");
    due = now_us();
    for (uint64_t count = 1;; count++) {
        int waiting = 0;
        dprintf(port, "b %llx %llx %llx %llx\n", (unsigned long long)count,
                (unsigned long long)now_us(), (unsigned long long)shared->writes,
                (unsigned long long)shared->errors);
        if (ioctl(port, FIONREAD, &waiting) == 0 && waiting > 0) {
            ssize_t got = read(port, line + filled, sizeof line - filled);
            if (got > 0) filled += (size_t)got;
            if (filled && line[filled - 1] == '\n') {
                if (filled == 6 && !memcmp(line, "check\n", 6)) shared->asked++;
                filled = 0;
            } else if (filled == sizeof line) {
                filled = 0;
            }
        }
        if (shared->answered != told) {
            told = shared->answered;
            dprintf(port, "c %llx %llx\n", (unsigned long long)shared->sum,
                    (unsigned long long)shared->errors);
        }
        rest(&due, beat_us);
    }
}
