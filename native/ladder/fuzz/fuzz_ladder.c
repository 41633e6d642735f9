/* Fuzzes encode and decode under the sanitizers.
 *
 * Invariant: what is encoded is decoded to the same pages and addresses, and both stores hold the
 * same; decoding damaged parts gives an answer or a refusal; neither touches a byte out of bounds.
 *
 *     fuzz_ladder SECONDS SEED
 */
#include "novacron_ladder.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define PAGES_MAX 24
#define CAPACITY 20u
#define AT 65536u

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

static int file(uint32_t page_size)
{
    FILE *f = tmpfile();
    must(f != NULL, "a file");
    int fd = dup(fileno(f));
    fclose(f);
    must(fd >= 0 && ftruncate(fd, AT + (off_t)CAPACITY * page_size) == 0, "its size");
    return fd;
}

static void content(uint8_t *page, uint32_t size, uint64_t number)
{
    for (uint32_t i = 0; i < size; i++)
        page[i] = (uint8_t)(number * 0x9E3779B97F4A7C15u >> (i % 8 * 8)) ^ (uint8_t)(i * number);
}

static void damage(nld_parts *p, uint8_t **copies, uint8_t *ops, uint32_t count)
{
    size_t *sizes[] = {&p->places_size, &p->args_size, &p->masks_size, &p->words_size,
                       &p->literals_size};
    for (size_t n = 1 + below(3); n > 0; n--) {
        size_t which = below(6);
        if (which == 5) {
            if (count)
                ops[below(count)] = (uint8_t)below(8);
            continue;
        }
        if (!*sizes[which])
            continue;
        if (rnd() % 3)
            copies[which][below(*sizes[which])] ^= (uint8_t)(1u << below(8));
        else
            *sizes[which] = below(*sizes[which]);
    }
}

static void history(void)
{
    const uint32_t sizes[] = {64, 128, 4096};
    const uint32_t size = sizes[below(3)];
    const int fds[3] = {file(size), file(size), file(size)};
    const uint64_t seed = rnd();
    nld_store *one = nld_store_new(fds[0], 0, 8, AT, size, CAPACITY, 1, seed);
    nld_store *two = nld_store_new(fds[1], 0, 8, AT, size, CAPACITY, 0, rnd());
    uint64_t hashes[8], offsets[8];
    uint32_t origin[8] = {0};
    static uint8_t page[NLD_PAGE_SIZE_MAX];
    for (uint32_t i = 0; i < 8; i++) {
        content(page, size, 100 + i);
        offsets[i] = (uint64_t)i * size;
        must(pwrite(fds[2], page, size, (off_t)offsets[i]) == (ssize_t)size, "written");
        nld_hash_pages(page, 1, size, seed, &hashes[i]);
    }
    const int32_t origin_fd = fds[2];
    const nld_origins origins = {&origin_fd, 1, origin, offsets, 8};
    nld_references *references = nld_references_new(hashes, 8);
    must(one && two && references, "memory");
    uint8_t *memory = calloc(64, size);
    must(memory != NULL, "memory");
    int broken = 0;
    for (int turn = 0; turn < 8 && !broken; turn++) {
        const uint32_t count = (uint32_t)below(PAGES_MAX + 1);
        uint8_t *pages = malloc((size_t)count * size + 1), *addresses = malloc(count * 8 + 1);
        uint8_t *room[6];
        const size_t each[6] = {NLD_PLACE_MAX, 1, NLD_ARG_MAX, size / 64, size / 2, size};
        for (int i = 0; i < 6; i++)
            must((room[i] = malloc(each[i] * count + 1)) != NULL, "memory");
        for (uint32_t i = 0; i < count; i++) {
            size_t where = below(64);
            uint8_t *now = memory + where * size;
            uint64_t address = where % 5 ? where * size : where * 0x123456789ABCDEFu;
            switch (below(5)) {
            case 0: memset(now, (int)below(3), size); break;
            case 1: content(now, size, 90 + below(20)); break;
            case 2: now[below(size)] ^= (uint8_t)rnd(); break;
            case 3: memcpy(now, memory + below(64) * size, size); break;
            }
            memcpy(pages + (size_t)i * size, now, size);
            memcpy(addresses + 8 * i, &address, 8);
        }
        nld_encoded e;
        must(nld_encode(one, rnd() % 2 ? references : NULL, (uint32_t)below(4), addresses, pages,
                        count, room[0], room[1], room[2], room[3], room[4], room[5], &e) == 0,
             "encoding works");
        uint8_t *ops = exact(room[1], count);
        uint8_t *copies[5] = {exact(room[0], e.places), exact(room[2], e.args),
                              exact(room[3], e.masks), exact(room[4], e.words),
                              exact(e.literals_are_pages ? pages : room[5], e.literals)};
        nld_parts parts = {copies[0], ops,      copies[1], copies[2], copies[3], copies[4],
                           e.places,  e.args,   e.masks,   e.words,   e.literals};
        uint8_t *to = malloc((size_t)count * size + 1), *at = malloc(count * 8 + 1);
        broken = rnd() % 4 == 0;
        if (broken) {
            damage(&parts, copies, ops, count);
            uint8_t *shorter[5];
            const size_t now[5] = {parts.places_size, parts.args_size, parts.masks_size,
                                   parts.words_size, parts.literals_size};
            for (int i = 0; i < 5; i++)
                shorter[i] = exact(copies[i], now[i]);
            parts.places = shorter[0];
            parts.args = shorter[1];
            parts.masks = shorter[2];
            parts.words = shorter[3];
            parts.literals = shorter[4];
            (void)nld_decode(two, &origins, &parts, count, at, to);
            for (int i = 0; i < 5; i++)
                free(shorter[i]);
        } else {
            must(nld_decode(two, &origins, &parts, count, at, to) == 0, "decoding works");
            must(memcmp(at, addresses, count * 8) == 0, "the addresses come back");
            must(memcmp(to, pages, (size_t)count * size) == 0, "the pages come back");
            must(nld_store_count(one) == nld_store_count(two), "the stores are alike");
        }
        for (int i = 0; i < 6; i++)
            free(room[i]);
        for (int i = 0; i < 5; i++)
            free(copies[i]);
        free(ops);
        free(to);
        free(at);
        free(pages);
        free(addresses);
    }
    free(memory);
    nld_references_free(references);
    nld_store_free(one);
    nld_store_free(two);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
}

int main(int argc, char **argv)
{
    must(argc == 3, "usage: fuzz_ladder SECONDS SEED");
    const time_t end = time(NULL) + atol(argv[1]);
    state = 0x9e3779b97f4a7c15u ^ strtoull(argv[2], NULL, 10);
    uint64_t runs = 0;
    for (; time(NULL) < end; runs++)
        history();
    printf("seed=%s histories=%llu\n", argv[2], (unsigned long long)runs);
    return 0;
}
