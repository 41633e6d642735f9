/* One batch of pages: which rung each of them takes. */
#include "inside.h"

#include <stdlib.h>

struct nld_references {
    uint64_t *hashes; /* 0 for those that are forgotten */
    uint32_t *table;  /* hash -> number + 1 */
    uint32_t count, mask;
};

nld_references *nld_references_new(const uint64_t *hashes, uint32_t count)
{
    if (count > 1u << 29)
        return NULL;
    nld_references *r = calloc(1, sizeof *r);
    if (!r)
        return NULL;
    uint32_t entries = 16;
    while (entries < 2 * (uint64_t)count)
        entries <<= 1;
    r->count = count;
    r->mask = entries - 1;
    r->hashes = malloc(((size_t)count + 1) * 8);
    r->table = calloc(entries, 4);
    if (!r->hashes || !r->table) {
        nld_references_free(r);
        return NULL;
    }
    memcpy(r->hashes, hashes, (size_t)count * 8);
    for (uint32_t i = 0; i < count; i++) {
        /* Whoever offers may offer hashes that all fall on one place: after so many steps a page is
         * left out rather than looked for. */
        uint32_t at = (uint32_t)(hashes[i] >> 32) & r->mask;
        for (uint32_t step = 0; hashes[i] && step < 64; step++, at = (at + 1) & r->mask) {
            if (!r->table[at]) {
                r->table[at] = i + 1;
                break;
            }
            if (r->hashes[r->table[at] - 1] == hashes[i])
                break; /* the first of equal ones is enough */
        }
    }
    return r;
}

void nld_references_free(nld_references *r)
{
    if (!r)
        return;
    free(r->hashes);
    free(r->table);
    free(r);
}

void nld_references_drop(nld_references *r, uint32_t first, uint32_t count)
{
    for (uint32_t i = first; i < r->count && i - first < count; i++)
        r->hashes[i] = 0;
}

static uint32_t find_reference(const nld_references *r, uint64_t hash)
{
    uint32_t at = (uint32_t)(hash >> 32) & r->mask;
    for (uint32_t step = 0; step < 64 && r->table[at]; step++, at = (at + 1) & r->mask) {
        if (r->hashes[r->table[at] - 1] == hash)
            return r->table[at] - 1;
    }
    return NLD_NO_SLOT;
}

static int is_uniform(const uint8_t *p, uint32_t size)
{
    uint64_t first = p[0] * 0x0101010101010101u;
    if (((nld_load(p) ^ first) | (nld_load(p + size / 2) ^ first) | (nld_load(p + size - 8) ^ first)))
        return 0;
    return memcmp(p, p + 8, size - 8) == 0;
}

static uint8_t *put_number(uint8_t *to, uint64_t v)
{
    for (; v >= 0x80; v >>= 7)
        *to++ = (uint8_t)(v | 0x80);
    *to++ = (uint8_t)v;
    return to;
}

/* Small numbers of either sign become small numbers. */
static uint64_t fold(int64_t v) { return (uint64_t)v << 1 ^ (uint64_t)(v >> 63); }

/* How far an address is from where the one before makes one expect it: in pages, or (after a 1) as
 * it is. Page after page is a run of zeros. */
static uint8_t *put_place(uint8_t *to, uint64_t address, uint64_t expected, uint32_t page_size)
{
    int64_t off = (int64_t)(address - expected);
    if (off % (int64_t)page_size == 0)
        return put_number(to, fold(off / (int64_t)page_size) << 1);
    *to++ = 1;
    nld_keep(to, address);
    return to + 8;
}

/* Which words differ, and by what; NULL if more than half do. */
static uint8_t *put_delta(const uint8_t *old, const uint8_t *now, uint32_t size, uint8_t *mask,
                          uint8_t *words)
{
    const uint8_t *full = words + size / 2;
    for (uint32_t at = 0; at < size; at += 64) {
        uint8_t bits = 0;
        if (memcmp(old + at, now + at, 64) == 0) {
            *mask++ = 0;
            continue;
        }
        if (full - words >= 64) {
            /* Without a branch that nobody can foresee: each word is put down, and kept if it
             * differs. */
            for (uint32_t i = 0; i < 8; i++) {
                uint64_t by = nld_load(old + at + 8 * i) ^ nld_load(now + at + 8 * i);
                nld_keep(words, by);
                words += by ? 8 : 0;
                bits |= (uint8_t)((by != 0) << i);
            }
        } else {
            for (uint32_t i = 0; i < 8; i++) {
                uint64_t by = nld_load(old + at + 8 * i) ^ nld_load(now + at + 8 * i);
                if (by) {
                    if (words == full)
                        return NULL;
                    bits |= (uint8_t)(1u << i);
                    nld_keep(words, by);
                    words += 8;
                }
            }
        }
        *mask++ = bits;
    }
    return words;
}

int nld_encode(nld_store *s, const nld_references *references, uint32_t find,
               const uint8_t *addresses, const uint8_t *pages, uint32_t count, uint8_t *places,
               uint8_t *ops, uint8_t *args, uint8_t *masks, uint8_t *words, uint8_t *literals,
               nld_encoded *encoded)
{
    const uint32_t size = s->page_size;
    uint8_t *place_to = places, *arg_to = args, *mask_to = masks, *word_to = words;
    uint32_t literal_count = 0;
    uint64_t expected = 0;
    uint32_t next_copy = 0, next_reference = 0;
    int failed = 0;
    memset(encoded, 0, sizeof *encoded);
    for (uint32_t i = 0; i < count; i++) {
        const uint8_t *page = pages + (size_t)i * size;
        const uint64_t address = nld_load(addresses + 8 * (size_t)i);
        uint32_t slot = nld_find(s, address);
        uint8_t op = NLD_LITERAL;
        uint64_t hash = 0;
        place_to = put_place(place_to, address, expected, size);
        expected = address + size;
        if (is_uniform(page, size)) {
            op = NLD_UNIFORM;
            *arg_to++ = page[0];
        } else {
            const uint8_t *old = NULL;
            if (slot != NLD_NO_SLOT) {
                old = nld_content(s, slot);
                if (memcmp(old, page, size) == 0)
                    op = NLD_SAME;
            }
            if (op == NLD_LITERAL && (find & NLD_FIND_CONTENT)) {
                hash = nld_hash(page, size, s->seed);
                uint32_t other = nld_find_content(s, hash);
                if (other != NLD_NO_SLOT && memcmp(nld_content(s, other), page, size) == 0) {
                    op = NLD_COPY;
                    arg_to = put_number(arg_to, fold((int64_t)other - next_copy));
                    next_copy = other + 1;
                }
                if (op == NLD_LITERAL && references && hash &&
                    (other = find_reference(references, hash)) != NLD_NO_SLOT) {
                    op = NLD_REFERENCE;
                    arg_to = put_number(arg_to, fold((int64_t)other - next_reference));
                    next_reference = other + 1;
                }
            }
            if (op == NLD_LITERAL && old && (find & NLD_FIND_DELTA)) {
                uint8_t *end = put_delta(old, page, size, mask_to, word_to);
                if (end) {
                    op = NLD_DELTA;
                    mask_to += size / 64;
                    word_to = end;
                }
            }
        }
        ops[i] = op;
        encoded->pages[op]++;
        /* Literals are copied together only from the first page on that is none. */
        if (op == NLD_LITERAL) {
            if (literal_count != i)
                memcpy(literals + (size_t)literal_count * size, page, size);
            literal_count++;
        } else if (literal_count == i && i > 0) {
            memcpy(literals, pages, (size_t)i * size);
        }
        /* The rule by which both sides keep their stores alike; nld_decode has the same. */
        if (op == NLD_SAME)
            nld_pass(s, slot, page);
        if (op == NLD_SAME || (op == NLD_UNIFORM && slot == NLD_NO_SLOT))
            continue;
        if (slot == NLD_NO_SLOT)
            slot = nld_slot_for(s, address, &failed);
        if (!failed && slot != NLD_NO_SLOT) {
            nld_note_content(s, slot, hash);
            failed = nld_put(s, slot, page);
        }
        if (failed)
            return failed;
    }
    encoded->places = (uint64_t)(place_to - places);
    encoded->args = (uint64_t)(arg_to - args);
    encoded->masks = (uint64_t)(mask_to - masks);
    encoded->words = (uint64_t)(word_to - words);
    encoded->literals = (uint64_t)literal_count * size;
    encoded->literals_are_pages = literal_count == count;
    return nld_settle(s);
}
