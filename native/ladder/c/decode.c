/* The way back. Everything in the parts is hostile; everything is checked before it is used. */
#include "inside.h"

typedef struct {
    const uint8_t *at, *end;
} cursor;

/* 0 if what follows is not a number of at most 64 bits. */
static int get_number(cursor *c, uint64_t *value)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 64 && c->at < c->end; shift += 7) {
        uint8_t byte = *c->at++;
        if (shift == 63 && byte > 1)
            return 0;
        v |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) {
            *value = v;
            return 1;
        }
    }
    return 0;
}

static uint64_t unfold(uint64_t v) { return v >> 1 ^ (0 - (v & 1)); }

static int get_place(cursor *c, uint64_t expected, uint32_t page_size, uint64_t *address)
{
    uint64_t v;
    if (!get_number(c, &v))
        return 0;
    if (!(v & 1)) {
        *address = expected + unfold(v >> 1) * page_size;
        return 1;
    }
    if (v != 1 || c->end - c->at < 8)
        return 0;
    *address = nld_load(c->at);
    c->at += 8;
    return 1;
}

/* A number near the one that was expected, below `count`. */
static int get_near(cursor *c, uint32_t *expected, uint32_t count, uint32_t *value)
{
    uint64_t v;
    if (!get_number(c, &v))
        return 0;
    v = *expected + unfold(v);
    if (v >= count)
        return 0;
    *value = (uint32_t)v;
    *expected = *value + 1;
    return 1;
}

/* Reads that were put off, to be done as one: consecutive in a file and in memory. */
typedef struct {
    int fd;
    uint64_t from;
    uint8_t *to;
    size_t size;
} reads;

static int do_reads(nld_store *s, reads *r)
{
    int error = r->size ? nld_read(r->fd, r->to, r->size, r->from) : 0;
    r->size = 0;
    if (!error)
        return 0;
    s->error = error;
    return NLD_IO;
}

static int want(nld_store *s, reads *r, int fd, uint64_t from, uint8_t *to)
{
    if (r->size && fd == r->fd && from == r->from + r->size && to == r->to + r->size) {
        r->size += s->page_size;
        return 0;
    }
    int failed = do_reads(s, r);
    *r = (reads){fd, from, to, s->page_size};
    return failed;
}

/* A slot's content into a page. What is on its way to the file may itself wait to be read. */
static int take_slot(nld_store *s, reads *r, uint32_t slot, uint8_t *to)
{
    int failed = do_reads(s, r);
    if (!failed)
        memcpy(to, nld_content(s, slot), s->page_size);
    return failed;
}

int nld_decode(nld_store *s, const nld_origins *origins, const nld_parts *parts, uint32_t count,
               uint8_t *addresses, uint8_t *pages)
{
    const uint32_t size = s->page_size, mask_size = size / 64;
    cursor place = {parts->places, parts->places + parts->places_size};
    cursor arg = {parts->args, parts->args + parts->args_size};
    cursor mask = {parts->masks, parts->masks + parts->masks_size};
    cursor word = {parts->words, parts->words + parts->words_size};
    cursor literal = {parts->literals, parts->literals + parts->literals_size};
    reads waiting = {0};
    uint64_t expected = 0;
    uint32_t next_copy = 0, next_reference = 0;
    int failed = 0;
    for (uint32_t i = 0; i < count; i++) {
        uint8_t *page = pages + (size_t)i * size;
        uint64_t address;
        uint32_t other;
        if (!get_place(&place, expected, size, &address))
            return NLD_BAD_PLACE;
        expected = address + size;
        nld_keep(addresses + 8 * (size_t)i, address);
        uint32_t slot = nld_find(s, address);
        const uint8_t op = parts->ops[i];
        switch (op) {
        case NLD_UNIFORM:
            if (arg.at == arg.end)
                return NLD_BAD_ARGUMENT;
            memset(page, *arg.at++, size);
            break;
        case NLD_SAME:
        case NLD_DELTA:
            if (slot == NLD_NO_SLOT)
                return NLD_BAD_OPERATION;
            failed = take_slot(s, &waiting, slot, page);
            break;
        case NLD_COPY:
            if (!get_near(&arg, &next_copy, s->count, &other))
                return NLD_BAD_ARGUMENT;
            failed = take_slot(s, &waiting, other, page);
            break;
        case NLD_REFERENCE:
            if (!get_near(&arg, &next_reference, origins ? origins->count : 0, &other) ||
                origins->origin[other] >= origins->fd_count ||
                origins->fds[origins->origin[other]] < 0)
                return NLD_BAD_ARGUMENT;
            failed = want(s, &waiting, origins->fds[origins->origin[other]],
                          origins->offset[other], page);
            break;
        case NLD_LITERAL:
            if ((size_t)(literal.end - literal.at) < size)
                return NLD_BAD_LENGTH;
            memcpy(page, literal.at, size);
            literal.at += size;
            break;
        default:
            return NLD_BAD_OPERATION;
        }
        if (failed)
            return failed;
        if (op == NLD_DELTA) {
            if ((size_t)(mask.end - mask.at) < mask_size)
                return NLD_BAD_LENGTH;
            for (uint32_t at = 0; at < size; at += 64) {
                for (uint32_t bits = *mask.at++, k = 0; bits; bits >>= 1, k++) {
                    if (!(bits & 1))
                        continue;
                    if (word.end - word.at < 8)
                        return NLD_BAD_LENGTH;
                    uint8_t *to = page + at + 8 * k;
                    nld_keep(to, nld_load(to) ^ nld_load(word.at));
                    word.at += 8;
                }
            }
        }
        if (op == NLD_SAME)
            nld_pass(s, slot, page);
        if (op == NLD_SAME || (op == NLD_UNIFORM && slot == NLD_NO_SLOT))
            continue;
        if (slot == NLD_NO_SLOT)
            slot = nld_slot_for(s, address, &failed);
        /* Only at the end of a run that goes on may a page still wait to be read. */
        if (!failed && waiting.size && !(slot != NLD_NO_SLOT && nld_goes_on(s, slot, page)))
            failed = do_reads(s, &waiting);
        if (!failed && slot != NLD_NO_SLOT)
            failed = nld_put(s, slot, page);
        if (failed)
            return failed;
    }
    failed = do_reads(s, &waiting);
    if (failed)
        return failed;
    if (place.at != place.end)
        return NLD_BAD_PLACE;
    if (arg.at != arg.end)
        return NLD_BAD_ARGUMENT;
    if (mask.at != mask.end || word.at != word.end || literal.at != literal.end)
        return NLD_BAD_LENGTH;
    return nld_settle(s);
}
