/* Zero scan, compare and hash, page by page. */
#include "novacron_pages.h"

#include <string.h>

static uint64_t load64(const uint8_t *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    v = __builtin_bswap64(v);
#endif
    return v;
}

static uint32_t load32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static int is_zero(const uint8_t *p, size_t size)
{
    /* Most pages that are not zero show it early; what looks zero is compared with itself, shifted
     * by eight bytes: the C library's memcmp knows the widest vectors of this very processor. */
    if (load64(p) | load64(p + size / 2) | load64(p + size - 8))
        return 0;
    return memcmp(p, p + 8, size - 8) == 0;
}

size_t npg_zero_pages(const uint8_t *data, size_t count, size_t page_size, uint8_t *bitmap)
{
    size_t found = 0;
    memset(bitmap, 0, (count + 7) / 8);
    for (size_t i = 0; i < count; i++) {
        if (is_zero(data + i * page_size, page_size)) {
            bitmap[i / 8] |= (uint8_t)(1u << (i % 8));
            found++;
        }
    }
    return found;
}

size_t npg_changed_pages(const uint8_t *old, const uint8_t *now, size_t count, size_t page_size,
                         uint64_t *indices)
{
    size_t found = 0;
    for (size_t i = 0; i < count; i++) {
        if (memcmp(old + i * page_size, now + i * page_size, page_size) != 0)
            indices[found++] = i;
    }
    return found;
}

size_t npg_take_changed(uint8_t *old, const uint8_t *now, size_t count, size_t page_size,
                        uint8_t *out, size_t room, uint64_t *indices, size_t *next)
{
    size_t found = 0, i = *next;
    for (; i < count && found < room; i++) {
        uint8_t *kept = old + i * page_size;
        if (memcmp(kept, now + i * page_size, page_size) == 0)
            continue;
        uint8_t *copy = out + found * page_size;
        memcpy(copy, now + i * page_size, page_size);
        memcpy(kept, copy, page_size); /* from the copy: the page itself may be changing */
        indices[found++] = i;
    }
    *next = i;
    return found;
}

/* XXH64, from its specification. */
#define P1 0x9E3779B185EBCA87u
#define P2 0xC2B2AE3D27D4EB4Fu
#define P3 0x165667B19E3779F9u
#define P4 0x85EBCA77C2B2AE63u
#define P5 0x27D4EB2F165667C5u

static uint64_t rotate(uint64_t v, int by) { return v << by | v >> (64 - by); }

static uint64_t mix(uint64_t lane, uint64_t word) { return rotate(lane + word * P2, 31) * P1; }

static uint64_t merge(uint64_t h, uint64_t lane) { return (h ^ mix(0, lane)) * P1 + P4; }

static uint64_t xxh64(const uint8_t *p, size_t size)
{
    const uint8_t *end = p + size;
    uint64_t h;
    if (size >= 32) {
        uint64_t a = P1 + P2, b = P2, c = 0, d = 0 - P1;
        for (; end - p >= 32; p += 32) {
            a = mix(a, load64(p));
            b = mix(b, load64(p + 8));
            c = mix(c, load64(p + 16));
            d = mix(d, load64(p + 24));
        }
        h = rotate(a, 1) + rotate(b, 7) + rotate(c, 12) + rotate(d, 18);
        h = merge(merge(merge(merge(h, a), b), c), d);
    } else {
        h = P5;
    }
    h += size;
    for (; end - p >= 8; p += 8)
        h = rotate(h ^ mix(0, load64(p)), 27) * P1 + P4;
    if (end - p >= 4) {
        h = rotate(h ^ load32(p) * P1, 23) * P2 + P3;
        p += 4;
    }
    for (; p < end; p++)
        h = rotate(h ^ *p * P5, 11) * P1;
    h = (h ^ h >> 33) * P2;
    h = (h ^ h >> 29) * P3;
    return h ^ h >> 32;
}

void npg_hash_pages(const uint8_t *data, size_t count, size_t page_size, uint64_t *hashes)
{
    for (size_t i = 0; i < count; i++)
        hashes[i] = xxh64(data + i * page_size, page_size);
}
