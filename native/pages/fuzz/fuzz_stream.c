/* Fuzzes splitter and join under the sanitizers.
 *
 * Invariant: joining what any input was split into, however it was cut and flushed, gives the input
 * back; joining a damaged batch gives a length or a refusal; neither touches a byte out of bounds.
 *
 *     fuzz_stream SECONDS SEED FILE...     mutates the files (fuzz/run.sh makes them)
 * With clang -fsanitize=fuzzer -DLIBFUZZER it is a libFuzzer target instead.
 */
#include "novacron_pages.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static uint64_t state = 1;

static uint64_t rnd(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static size_t below(size_t n) { return n ? rnd() % n : 0; }

static void must(int truth, const char *what)
{
    if (!truth) {
        fprintf(stderr, "violated: %s\n", what);
        abort();
    }
}

/* A copy that ends where its memory ends, so that the sanitizer sees the first byte too far. */
static uint8_t *exact(const uint8_t *p, size_t size)
{
    uint8_t *copy = malloc(size ? size : 1);
    must(copy != NULL, "memory");
    memcpy(copy, p, size);
    return copy;
}

static void damage(uint8_t *p, size_t size)
{
    static const uint8_t notable[] = {0, 1, 2, 3, 4, 8, 0x10, 0x28, 0x7e, 0x7f, 0x80, 0xff};
    for (size_t n = below(4); size && n > 0; n--) {
        if (rnd() % 2)
            p[below(size)] = notable[below(sizeof notable)];
        else
            p[below(size)] ^= (uint8_t)(1u << below(8));
    }
}

static uint8_t out[NPG_JOINED_MAX];

static void join_and_damage(const uint8_t *data, size_t *at, const uint8_t *layout, size_t size,
                            const uint8_t *addresses, const uint8_t *pages, size_t count,
                            size_t page_size)
{
    uint8_t *l = exact(layout, size), *a = exact(addresses, count * 8),
            *p = exact(pages, count * page_size);
    int64_t length = npg_join(l, size, a, count * 8, p, count * page_size, out, sizeof out);
    must(length > 0, "what was split can be joined");
    must(memcmp(out, data + *at, (size_t)length) == 0, "joined bytes are the stream's");
    *at += (size_t)length;
    damage(l, size);
    damage(a, count * 8);
    if (rnd() % 4 == 0 && size) { /* truncated */
        size = below(size);
        free(l);
        l = exact(layout, size);
    }
    if (rnd() % 4 == 0 && count) { /* fewer pages than the layout speaks of */
        count = below(count);
        free(a);
        free(p);
        a = exact(addresses, count * 8);
        p = exact(pages, count * page_size);
    }
    size_t room = below((size_t)length + 2);
    if (rnd() % 4 == 0 && size >= 8) { /* says that it fits, and does not */
        for (int i = 0; i < 4; i++)
            l[4 + i] = (uint8_t)(room >> 8 * i);
    }
    if (room < 1 << 16) {
        uint8_t *short_out = exact(out, room);
        (void)npg_join(l, size, a, count * 8, p, count * page_size, short_out, room);
        free(short_out);
    } else {
        (void)npg_join(l, size, a, count * 8, p, count * page_size, out, sizeof out);
    }
    free(l);
    free(a);
    free(p);
}

static void check(const uint8_t *data, size_t size)
{
    static uint8_t layout[NPG_LAYOUT_MAX], pages[NPG_PAGES_TARGET];
    static uint8_t addresses[8 * (NPG_PAGES_TARGET >> NPG_PAGE_BITS_MIN)];
    npg_splitter *s = npg_splitter_new(12);
    must(s != NULL, "memory");
    size_t fed = 0, joined = 0, most = rnd() % 3 ? size : 100 + below(50000);
    while (fed < size) {
        size_t n = 1 + below(most), used = 0;
        n = n < size - fed ? n : size - fed;
        uint8_t *piece = exact(data + fed, n);
        size_t at = 0;
        int full;
        do {
            full = npg_split(s, piece + at, n - at, &used, layout, addresses, pages);
            at += used;
            int last = !full && fed + n == size;
            if (full || last || rnd() % 8 == 0) {
                size_t layout_size, count;
                npg_take(s, last || rnd() % 2, layout, &layout_size, &count);
                if (layout_size)
                    join_and_damage(data, &joined, layout, layout_size, addresses, pages, count,
                                    (size_t)1 << layout[1]);
            }
        } while (full);
        must(at == n, "all input was taken");
        free(piece);
        fed += n;
    }
    must(joined == size, "nothing is missing");
    npg_splitter_free(s);
}

#ifdef LIBFUZZER
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    state = 0x9e3779b97f4a7c15u ^ size;
    check(data, size);
    return 0;
}
#else
int main(int argc, char **argv)
{
    must(argc > 3, "usage: fuzz_stream SECONDS SEED FILE...");
    const time_t end = time(NULL) + atol(argv[1]);
    state = 0x9e3779b97f4a7c15u ^ strtoull(argv[2], NULL, 10);
    uint64_t runs = 0;
    while (time(NULL) < end) {
        FILE *f = fopen(argv[3 + below((size_t)(argc - 3))], "rb");
        must(f != NULL, "the file opens");
        static uint8_t data[8 << 20];
        size_t size = fread(data, 1, sizeof data, f);
        fclose(f);
        for (int i = 0; i < 20 && time(NULL) < end; i++, runs++) {
            uint8_t *copy = exact(data, size);
            if (i)
                damage(copy, size);
            check(copy, i % 5 == 4 ? below(size) : size);
            free(copy);
        }
    }
    printf("%llu streams split and joined, no violation\n", (unsigned long long)runs);
    return 0;
}
#endif
