/* XXH64, from its specification, with a seed: to find pages, not to believe in them. */
#include "inside.h"

#include <errno.h>
#include <unistd.h>

#define P1 0x9E3779B185EBCA87u
#define P2 0xC2B2AE3D27D4EB4Fu
#define P3 0x165667B19E3779F9u
#define P4 0x85EBCA77C2B2AE63u
#define P5 0x27D4EB2F165667C5u

static uint64_t rotate(uint64_t v, int by) { return v << by | v >> (64 - by); }

static uint64_t mix(uint64_t lane, uint64_t word) { return rotate(lane + word * P2, 31) * P1; }

static uint64_t merge(uint64_t h, uint64_t lane) { return (h ^ mix(0, lane)) * P1 + P4; }

/* Sizes of pages are multiples of 32, so that there is no tail. */
uint64_t nld_hash(const uint8_t *p, size_t size, uint64_t seed)
{
    uint64_t a = seed + P1 + P2, b = seed + P2, c = seed, d = seed - P1;
    for (const uint8_t *end = p + size; p < end; p += 32) {
        a = mix(a, nld_load(p));
        b = mix(b, nld_load(p + 8));
        c = mix(c, nld_load(p + 16));
        d = mix(d, nld_load(p + 24));
    }
    uint64_t h = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
    h = merge(merge(merge(merge(h, a), b), c), d) + size;
    h = (h ^ h >> 33) * P2;
    h = (h ^ h >> 29) * P3;
    return h ^ h >> 32;
}

void nld_hash_pages(const uint8_t *data, uint64_t count, uint32_t page_size, uint64_t seed,
                    uint64_t *hashes)
{
    for (uint64_t i = 0; i < count; i++)
        hashes[i] = nld_hash(data + i * page_size, page_size, seed);
}

int nld_read(int fd, uint8_t *to, size_t size, uint64_t at)
{
    while (size) {
        ssize_t n = pread(fd, to, size, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? errno : EIO; /* the file is shorter than it was */
        to += n;
        at += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

int nld_write(int fd, const uint8_t *from, size_t size, uint64_t at)
{
    while (size) {
        ssize_t n = pwrite(fd, from, size, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n ? errno : EIO;
        from += n;
        at += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

int nld_hash_file(int fd, uint64_t at, uint64_t count, uint32_t page_size, uint64_t seed,
                  uint64_t *hashes, uint64_t second_seed, uint64_t *second, uint8_t *work,
                  size_t work_size)
{
    const uint64_t room = work_size / page_size;
    while (count) {
        uint64_t n = count < room ? count : room;
        int failed = nld_read(fd, work, n * page_size, at);
        if (failed)
            return failed;
        nld_hash_pages(work, n, page_size, seed, hashes);
        hashes += n;
        if (second) {
            nld_hash_pages(work, n, page_size, second_seed, second);
            second += n;
        }
        at += n * page_size;
        count -= n;
    }
    return 0;
}
