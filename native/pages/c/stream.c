/* QEMU's migration stream taken apart and put together again.
 *
 * The stream (file version 3, RAM section version 4), all numbers big-endian:
 *
 *   magic, version, then at the top level, by the first byte:
 *     00 end         06 description: length, bytes      7e footer: section id
 *     01 start / 04 full: id, name, instance, version, contents
 *     02 part / 03 end: id, contents
 *     07 configuration: length, machine name, subsections (05)
 *     08 command: number, length, bytes
 *   in a "ram" section: 8 bytes of offset | flags, then the block's name (length, bytes) unless flag
 *   20 says "same block", then what the kind of record holds, until the record with flag 10.
 *
 * Only RAM sections can be walked: others carry no length. They pass through opaque, and while they
 * do we look for "footer, then a part of ram" to walk again. Nothing here can go wrong for the
 * bytes: whatever a record is taken for, the layout says how to write it down again.
 *
 * The layout, all numbers little-endian: 1 byte version, 1 byte page bits, 2 bytes zero, 4 bytes
 * length of the joined stream; then operations, each 1 byte kind and 4 bytes count n:
 *     1 LITERAL  n bytes follow
 *     2 PAGES    n records "page, same block": offset from the next address, content from pages
 *     3 ZEROS    8 bytes first offset follow: n records "zero page, same block", one page apart
 *     4 CONTENT  n pages' contents without a record header (that stood in a literal)
 * Which bytes go to which batch depends on the stream alone, not on how it was cut when fed.
 */
#include "novacron_pages.h"

#include <stdlib.h>
#include <string.h>

#define LAYOUT_VERSION 1
#define HEADER_SIZE 8
#define OP_SIZE 5
enum { OP_NONE = 0, OP_LITERAL = 1, OP_PAGES = 2, OP_ZEROS = 3, OP_CONTENT = 4 };

#define FILE_MAGIC 0x5145564du
#define FILE_VERSION 3u
#define RAM_VERSION 4u
enum {
    TOP_EOF = 0x00, TOP_START = 0x01, TOP_PART = 0x02, TOP_END = 0x03, TOP_FULL = 0x04,
    TOP_SUBSECTION = 0x05, TOP_DESCRIPTION = 0x06, TOP_CONFIGURATION = 0x07, TOP_COMMAND = 0x08,
    TOP_FOOTER = 0x7e
};
/* Commands that have to do with pages arriving after the machine runs. */
enum { COMMAND_POSTCOPY_FIRST = 3, COMMAND_PACKAGED = 7 };
enum {
    RAM_ZERO = 0x02, RAM_MEM_SIZE = 0x04, RAM_PAGE = 0x08, RAM_EOS = 0x10, RAM_CONTINUE = 0x20,
    RAM_XBZRLE = 0x40, RAM_COMPRESS = 0x100, RAM_MULTIFD_FLUSH = 0x200
};
#define OFFSET_LIMIT ((uint64_t)1 << 48) /* above it the address carries the block's number */
#define CONFIGURATION_NAME_MAX 4096u

enum { S_MAGIC, S_TOP, S_CONFIGURATION, S_RAM, S_BLOCKS, S_SKIP, S_OPAQUE };
enum { MORE, DONE, BROKEN };

/* The longest record that is gathered before it is understood: a page with its block's name. */
#define RECORD_MAX (8 + 1 + 255 + (1u << NPG_PAGE_BITS_MAX))
/* "footer, then a start of ram", the longest thing looked for in opaque bytes. */
#define MARK_START 22
#define MARK_PART 10
#define TAIL_MAX (MARK_START - 1)

typedef struct {
    uint8_t size;
    uint8_t name[255];
} block_name;

struct npg_splitter {
    npg_counters count;
    int state;
    int after_skip;
    int sealed; /* opaque for good */
    uint32_t page_size;
    uint64_t skip;        /* S_SKIP: bytes left */
    uint64_t blocks_left; /* S_BLOCKS: bytes of memory whose block has not been listed yet */
    int ram_known;
    uint32_t ram_id;
    int32_t block; /* the block that "same block" means, -1 for none */
    uint64_t last_key;
    /* the batch under way */
    uint32_t layout_size, page_count, joined;
    uint32_t op_at, op_kind, op_count;
    uint64_t zero_next;
    /* the record under way */
    uint32_t have, emitted;
    uint32_t kind; /* set when it is complete: RAM_PAGE, RAM_ZERO or 0, */
    uint32_t flags, body;
    uint64_t offset;
    /* the last opaque bytes */
    uint32_t tail_size;
    uint8_t tail[TAIL_MAX];
    block_name blocks[NPG_BLOCKS_MAX];
    uint8_t record[RECORD_MAX];
};

typedef struct {
    uint8_t *layout, *addresses, *pages;
} outputs;

static uint16_t be16(const uint8_t *p) { return (uint16_t)((unsigned)p[0] << 8 | p[1]); }

static uint32_t be32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static uint64_t be64(const uint8_t *p) { return (uint64_t)be32(p) << 32 | be32(p + 4); }

static void put_be64(uint8_t *p, uint64_t v)
{
    for (int i = 7; i >= 0; i--, v >>= 8)
        p[i] = (uint8_t)v;
}

static uint32_t le32(const uint8_t *p)
{
    return (uint32_t)p[3] << 24 | (uint32_t)p[2] << 16 | (uint32_t)p[1] << 8 | p[0];
}

static uint64_t le64(const uint8_t *p) { return (uint64_t)le32(p + 4) << 32 | le32(p); }

static void put_le32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++, v >>= 8)
        p[i] = (uint8_t)v;
}

static void put_le64(uint8_t *p, uint64_t v)
{
    put_le32(p, (uint32_t)v);
    put_le32(p + 4, (uint32_t)(v >> 32));
}

static uint32_t min_size(size_t a, size_t b) { return (uint32_t)(a < b ? a : b); }

npg_splitter *npg_splitter_new(uint32_t page_bits)
{
    if (page_bits < NPG_PAGE_BITS_MIN || page_bits > NPG_PAGE_BITS_MAX)
        return NULL;
    npg_splitter *s = calloc(1, sizeof *s);
    if (s == NULL)
        return NULL;
    s->state = S_MAGIC;
    s->count.page_bits = page_bits;
    s->page_size = 1u << page_bits;
    s->block = -1;
    s->layout_size = HEADER_SIZE;
    return s;
}

void npg_splitter_free(npg_splitter *s) { free(s); }

void npg_count(const npg_splitter *s, npg_counters *counters) { *counters = s->count; }

/* --- the batch under way ------------------------------------------------------------------ */

static int is_full(const npg_splitter *s)
{
    return s->layout_size >= NPG_LAYOUT_TARGET || s->joined >= NPG_JOINED_TARGET ||
           s->page_count >= NPG_PAGES_TARGET >> s->count.page_bits;
}

/* Goes on with the operation that stands last in the layout, or begins one. */
static void operation(npg_splitter *s, const outputs *o, uint32_t kind, uint32_t more)
{
    if (s->op_kind != kind) {
        s->op_kind = kind;
        s->op_at = s->layout_size;
        s->op_count = 0;
        o->layout[s->op_at] = (uint8_t)kind;
        s->layout_size += OP_SIZE;
    }
    s->op_count += more;
    put_le32(o->layout + s->op_at + 1, s->op_count);
}

static void put_literal(npg_splitter *s, const outputs *o, const uint8_t *p, uint32_t size)
{
    if (size == 0)
        return;
    operation(s, o, OP_LITERAL, size);
    memcpy(o->layout + s->layout_size, p, size);
    s->layout_size += size;
    s->joined += size;
}

static void put_page(npg_splitter *s, const outputs *o, uint32_t op, uint64_t offset,
                     const uint8_t *content)
{
    operation(s, o, op, 1);
    put_le64(o->addresses + 8 * (size_t)s->page_count, (uint64_t)s->block << 48 | offset);
    memcpy(o->pages + (size_t)s->page_count * s->page_size, content, s->page_size);
    s->page_count++;
    s->joined += s->page_size + (op == OP_PAGES ? 8 : 0);
}

static void put_zero(npg_splitter *s, const outputs *o, uint64_t offset)
{
    if (s->op_kind == OP_ZEROS && offset != s->zero_next)
        s->op_kind = OP_NONE;
    int fresh = s->op_kind != OP_ZEROS;
    operation(s, o, OP_ZEROS, 1);
    if (fresh) {
        put_le64(o->layout + s->layout_size, offset);
        s->layout_size += 8;
    }
    s->zero_next = offset + s->page_size;
    s->joined += 9;
}

void npg_take(npg_splitter *s, int all, uint8_t *layout, size_t *layout_size, size_t *page_count)
{
    if (all && s->have > s->emitted) {
        const outputs o = {layout, NULL, NULL};
        put_literal(s, &o, s->record + s->emitted, s->have - s->emitted);
        s->emitted = s->have;
    }
    *layout_size = s->joined ? s->layout_size : 0;
    *page_count = s->page_count;
    if (s->joined) {
        layout[0] = LAYOUT_VERSION;
        layout[1] = (uint8_t)s->count.page_bits;
        layout[2] = layout[3] = 0;
        put_le32(layout + 4, s->joined);
    }
    s->layout_size = HEADER_SIZE;
    s->page_count = s->joined = 0;
    s->op_kind = OP_NONE;
}

/* --- understanding records ---------------------------------------------------------------- */

static void go(npg_splitter *s, int state)
{
    s->state = state;
    s->count.reason = NPG_WALKING;
}

static void skip_to(npg_splitter *s, uint64_t size, int state)
{
    s->skip = size;
    s->after_skip = state;
    s->state = size ? S_SKIP : state;
}

static int broken(npg_splitter *s, int reason)
{
    s->count.reason = reason;
    s->count.section[0] = 0;
    s->sealed = reason > NPG_BAD_RECORD;
    return BROKEN;
}

static void mark(npg_splitter *s, uint64_t offset)
{
    /* QEMU passes over memory in one order, so a step back is a new pass. */
    uint64_t key = (uint64_t)s->block << 48 | offset;
    if (s->count.rounds == 0 || key < s->last_key)
        s->count.rounds++;
    s->last_key = key;
}

static int32_t find_block(const npg_splitter *s, const uint8_t *name, uint8_t size)
{
    for (uint32_t i = 0; i < s->count.blocks; i++) {
        if (s->blocks[i].size == size && memcmp(s->blocks[i].name, name, size) == 0)
            return (int32_t)i;
    }
    return -1;
}

#define WANT(n)            \
    do {                   \
        if (s->have < (n)) { \
            *need = (n);   \
            return MORE;   \
        }                  \
    } while (0)

static int same(const uint8_t *p, uint32_t size, const char *text)
{
    return size == strlen(text) && memcmp(p, text, size) == 0;
}

static int parse_configuration(npg_splitter *s, uint32_t *need)
{
    const uint8_t *r = s->record;
    WANT(2u);
    uint32_t at = 2u + r[1] + 4u; /* name, then version */
    WANT(at);
    if (same(r + 2, r[1], "configuration/target-page-bits")) {
        WANT(at + 4);
        uint32_t bits = be32(r + at);
        if (bits < NPG_PAGE_BITS_MIN || bits > NPG_PAGE_BITS_MAX)
            return broken(s, NPG_CONFIGURATION);
        if (s->page_count && bits != s->count.page_bits)
            return broken(s, NPG_CONFIGURATION); /* a batch has pages of one size */
        s->count.page_bits = bits;
        s->page_size = 1u << bits;
        return DONE;
    }
    if (same(r + 2, r[1], "configuration/uuid")) {
        WANT(at + 16);
        return DONE;
    }
    /* Capabilities come here when one is on that puts memory elsewhere (mapped, shared). */
    return broken(s, NPG_CONFIGURATION);
}

static int parse_top(npg_splitter *s, uint32_t *need)
{
    const uint8_t *r = s->record;
    WANT(1u);
    switch (r[0]) {
    case TOP_EOF:
        go(s, S_TOP);
        return DONE;
    case TOP_FOOTER:
        WANT(5u);
        go(s, S_TOP);
        return DONE;
    case TOP_START:
    case TOP_FULL: {
        WANT(6u);
        uint32_t size = r[5];
        WANT(6 + size + 8);
        if (r[0] == TOP_START && same(r + 6, size, "ram") && be32(r + 6 + size + 4) == RAM_VERSION) {
            s->ram_known = 1;
            s->ram_id = be32(r + 1);
            go(s, S_RAM);
            return DONE;
        }
        (void)broken(s, NPG_DEVICE);
        memcpy(s->count.section, r + 6, size);
        s->count.section[size] = 0;
        return BROKEN;
    }
    case TOP_PART:
    case TOP_END:
        WANT(5u);
        if (s->ram_known && be32(r + 1) == s->ram_id) {
            go(s, S_RAM);
            return DONE;
        }
        return broken(s, NPG_DEVICE);
    case TOP_DESCRIPTION:
        WANT(5u);
        skip_to(s, be32(r + 1), S_TOP);
        return DONE;
    case TOP_CONFIGURATION:
        WANT(5u);
        if (be32(r + 1) > CONFIGURATION_NAME_MAX)
            return broken(s, NPG_CONFIGURATION);
        skip_to(s, be32(r + 1), S_CONFIGURATION);
        return DONE;
    case TOP_COMMAND: {
        WANT(5u);
        uint32_t command = be16(r + 1);
        if (command >= COMMAND_POSTCOPY_FIRST && command <= COMMAND_PACKAGED)
            return broken(s, NPG_POSTCOPY);
        skip_to(s, be16(r + 3), S_TOP);
        return DONE;
    }
    default:
        return broken(s, NPG_BAD_RECORD);
    }
}

static int parse_ram(npg_splitter *s, uint32_t *need)
{
    const uint8_t *r = s->record;
    WANT(8u);
    uint64_t word = be64(r), offset = word & ~(uint64_t)(s->page_size - 1);
    uint32_t flags = (uint32_t)(word & (s->page_size - 1)), kind = flags & ~(uint32_t)RAM_CONTINUE;
    if (word == RAM_EOS) {
        go(s, S_TOP);
        return DONE;
    }
    if (flags == RAM_MEM_SIZE && offset) {
        s->blocks_left = s->count.ram_bytes = offset;
        s->count.blocks = 0;
        s->block = -1;
        s->state = S_BLOCKS;
        return DONE;
    }
    if (flags == RAM_MULTIFD_FLUSH)
        return broken(s, NPG_MULTIFD);
    if (kind != RAM_PAGE && kind != RAM_ZERO && kind != RAM_XBZRLE && kind != RAM_COMPRESS)
        return broken(s, NPG_BAD_RECORD);
    if (offset >= OFFSET_LIMIT)
        return broken(s, NPG_BAD_RECORD);
    uint32_t at = 8;
    int32_t block = s->block;
    if (!(flags & RAM_CONTINUE)) {
        WANT(9u);
        at = 9u + r[8];
        WANT(at);
        block = find_block(s, r + 9, r[8]);
    }
    if (block < 0)
        return broken(s, NPG_BAD_RECORD);
    uint32_t packed;
    switch (kind) {
    case RAM_PAGE:
        WANT(at + s->page_size);
        s->count.pages++;
        break;
    case RAM_ZERO:
        WANT(at + 1);
        s->count.zero_pages++;
        break;
    case RAM_XBZRLE:
        WANT(at + 3);
        packed = be16(r + at + 1);
        if (r[at] != 1 || packed > s->page_size)
            return broken(s, NPG_BAD_RECORD);
        s->count.pages++;
        skip_to(s, packed, S_RAM);
        break;
    default:
        WANT(at + 4);
        packed = be32(r + at);
        if (packed > 2 * s->page_size)
            return broken(s, NPG_BAD_RECORD);
        s->count.pages++;
        skip_to(s, packed, S_RAM);
        break;
    }
    s->block = block;
    s->kind = kind;
    s->flags = flags;
    s->body = at;
    s->offset = offset;
    mark(s, offset);
    return DONE;
}

static int parse_blocks(npg_splitter *s, uint32_t *need)
{
    const uint8_t *r = s->record;
    WANT(1u);
    uint32_t size = r[0];
    WANT(1 + size + 8);
    uint64_t length = be64(r + 1 + size);
    if (size == 0 || length == 0 || length > s->blocks_left)
        return broken(s, NPG_BAD_RECORD);
    if (s->count.blocks == NPG_BLOCKS_MAX)
        return broken(s, NPG_TOO_MANY_BLOCKS);
    if (find_block(s, r + 1, r[0]) >= 0)
        return broken(s, NPG_BAD_RECORD);
    block_name *b = &s->blocks[s->count.blocks++];
    b->size = (uint8_t)size;
    memcpy(b->name, r + 1, size);
    s->blocks_left -= length;
    if (s->blocks_left == 0)
        s->state = S_RAM;
    return DONE;
}

static int parse(npg_splitter *s, uint32_t *need)
{
    const uint8_t *r = s->record;
    s->kind = 0;
    switch (s->state) {
    case S_MAGIC:
        WANT(8u);
        if (be32(r) != FILE_MAGIC || be32(r + 4) != FILE_VERSION)
            return broken(s, NPG_NOT_QEMU);
        go(s, S_TOP);
        return DONE;
    case S_CONFIGURATION:
        WANT(1u);
        if (r[0] == TOP_SUBSECTION)
            return parse_configuration(s, need);
        return parse_top(s, need);
    case S_RAM:
        return parse_ram(s, need);
    case S_BLOCKS:
        return parse_blocks(s, need);
    default:
        return parse_top(s, need);
    }
}

/* Writes the record under way down; `kind` is 0 for all that has no form of its own. */
static void put_record(npg_splitter *s, const outputs *o)
{
    const uint8_t *r = s->record;
    if (s->emitted) {
        put_literal(s, o, r + s->emitted, s->have - s->emitted); /* its beginning has left already */
    } else if (s->kind == RAM_PAGE && s->flags & RAM_CONTINUE) {
        put_page(s, o, OP_PAGES, s->offset, r + s->body);
    } else if (s->kind == RAM_PAGE) {
        put_literal(s, o, r, s->body);
        put_page(s, o, OP_CONTENT, s->offset, r + s->body);
    } else if (s->kind == RAM_ZERO && s->flags & RAM_CONTINUE && r[s->body] == 0) {
        put_zero(s, o, s->offset);
    } else {
        put_literal(s, o, r, s->have);
    }
    s->have = s->emitted = 0;
}

/* Gathers one record, however the input is cut. */
static const uint8_t *walk(npg_splitter *s, const uint8_t *p, const uint8_t *end, const outputs *o)
{
    for (;;) {
        uint32_t need = 0;
        switch (parse(s, &need)) {
        case DONE:
            put_record(s, o);
            return p;
        case BROKEN:
            s->tail_size = min_size(s->have, TAIL_MAX);
            memcpy(s->tail, s->record + s->have - s->tail_size, s->tail_size);
            s->kind = 0;
            s->count.opaque_bytes += s->have - s->emitted;
            put_record(s, o);
            s->state = S_OPAQUE;
            return p;
        default:
            break;
        }
        if (p == end)
            return p;
        uint32_t more = min_size(need - s->have, (size_t)(end - p));
        memcpy(s->record + s->have, p, more);
        s->have += more;
        p += more;
    }
}

/* The common records that lie whole in the input, without a detour. */
static const uint8_t *walk_ram(npg_splitter *s, const uint8_t *p, const uint8_t *end,
                               const outputs *o)
{
    const uint64_t mask = s->page_size - 1;
    while (end - p >= 9 && s->block >= 0 && !is_full(s)) {
        uint64_t word = be64(p), offset = word & ~mask;
        uint32_t flags = (uint32_t)(word & mask);
        if (offset >= OFFSET_LIMIT)
            break;
        if (flags == (RAM_PAGE | RAM_CONTINUE) && (size_t)(end - p) >= 8 + (size_t)s->page_size) {
            put_page(s, o, OP_PAGES, offset, p + 8);
            s->count.pages++;
            p += 8 + s->page_size;
        } else if (flags == (RAM_ZERO | RAM_CONTINUE) && p[8] == 0) {
            put_zero(s, o, offset);
            s->count.zero_pages++;
            p += 9;
        } else {
            break;
        }
        mark(s, offset);
    }
    return p;
}

static uint32_t literal_room(const npg_splitter *s, size_t available)
{
    uint32_t used = s->layout_size + (s->op_kind == OP_LITERAL ? 0 : OP_SIZE);
    return min_size(available, used < NPG_LAYOUT_TARGET ? NPG_LAYOUT_TARGET - used : 1);
}

static int is_mark(const npg_splitter *s, const uint8_t *p)
{
    if (p[0] != TOP_FOOTER)
        return 0;
    if (s->ram_known)
        return (p[5] == TOP_PART || p[5] == TOP_END) && be32(p + 6) == s->ram_id;
    return p[5] == TOP_START && same(p + 11, p[10], "ram") && be32(p + 18) == RAM_VERSION;
}

/* Where the first mark ends, or NULL. */
static const uint8_t *find_mark(const npg_splitter *s, const uint8_t *p, const uint8_t *end)
{
    const int size = s->ram_known ? MARK_PART : MARK_START;
    while (end - p >= size) {
        p = memchr(p, TOP_FOOTER, (size_t)(end - p - size + 1));
        if (p == NULL)
            return NULL;
        if (is_mark(s, p))
            return p + size;
        p++;
    }
    return NULL;
}

static const uint8_t *pass_opaque(npg_splitter *s, const uint8_t *p, const uint8_t *end,
                                  const outputs *o)
{
    uint32_t size = literal_room(s, (size_t)(end - p));
    const uint8_t *found = NULL, *start = NULL;
    if (!s->sealed) {
        /* A mark may begin in what has passed already. */
        const uint32_t length = s->ram_known ? MARK_PART : MARK_START;
        uint8_t window[2 * TAIL_MAX];
        uint32_t before = min_size(s->tail_size, length - 1), after = min_size(size, length - 1);
        memcpy(window, s->tail + s->tail_size - before, before);
        memcpy(window + before, p, after);
        const uint8_t *hit = find_mark(s, window, window + before + after);
        if (hit != NULL && hit > window + before) {
            found = p + (hit - window - before);
            start = hit - length + 5;
        } else {
            found = find_mark(s, p, p + size);
            start = found ? found - length + 5 : NULL;
        }
        if (found != NULL) {
            size = (uint32_t)(found - p);
            if (!s->ram_known) {
                s->ram_known = 1;
                s->ram_id = be32(start + 1);
            }
            s->tail_size = 0;
            s->count.resyncs++;
            go(s, S_RAM);
        } else {
            uint32_t kept = min_size(s->tail_size, size < TAIL_MAX ? TAIL_MAX - size : 0);
            uint32_t added = min_size(size, TAIL_MAX);
            memmove(s->tail, s->tail + s->tail_size - kept, kept);
            memcpy(s->tail + kept, p + size - added, added);
            s->tail_size = kept + added;
        }
    }
    put_literal(s, o, p, size);
    s->count.opaque_bytes += size;
    return p + size;
}

int npg_split(npg_splitter *s, const uint8_t *data, size_t size, size_t *used, uint8_t *layout,
              uint8_t *addresses, uint8_t *pages)
{
    const outputs o = {layout, addresses, pages};
    const uint8_t *p = data, *end = data + size;
    int full;
    while (!(full = is_full(s)) && p < end) {
        if (s->state == S_SKIP) {
            uint32_t n = literal_room(s, (size_t)(end - p));
            n = s->skip < n ? (uint32_t)s->skip : n;
            put_literal(s, &o, p, n);
            p += n;
            s->skip -= n;
            if (s->skip == 0)
                s->state = s->after_skip;
        } else if (s->state == S_OPAQUE) {
            p = pass_opaque(s, p, end, &o);
        } else {
            const uint8_t *before = p;
            if (s->state == S_RAM && s->have == 0)
                p = walk_ram(s, p, end, &o);
            if (p == before)
                p = walk(s, p, end, &o);
        }
    }
    *used = (size_t)(p - data);
    s->count.bytes += *used;
    return full;
}

/* --- and together again ------------------------------------------------------------------- */

int64_t npg_join(const uint8_t *layout, size_t layout_size, const uint8_t *addresses,
                 size_t addresses_size, const uint8_t *pages, size_t pages_size, uint8_t *out,
                 size_t out_size)
{
    if (layout_size < HEADER_SIZE)
        return NPG_BAD_HEADER;
    const uint32_t bits = layout[1];
    if (layout[0] != LAYOUT_VERSION || bits < NPG_PAGE_BITS_MIN || bits > NPG_PAGE_BITS_MAX ||
        layout[2] != 0 || layout[3] != 0)
        return NPG_BAD_HEADER;
    const size_t page_size = (size_t)1 << bits, total = le32(layout + 4);
    if (total > out_size || total > NPG_JOINED_MAX)
        return NPG_TOO_LONG;
    size_t count = addresses_size / 8, page = 0, done = 0, at = HEADER_SIZE;
    if (addresses_size % 8 || pages_size / page_size != count || pages_size % page_size)
        return NPG_BAD_COUNT;
    while (at < layout_size) {
        if (layout_size - at < OP_SIZE)
            return NPG_BAD_OPERATION;
        const uint32_t kind = layout[at], n = le32(layout + at + 1);
        const size_t room = total - done;
        at += OP_SIZE;
        if (n == 0)
            return NPG_BAD_OPERATION;
        switch (kind) {
        case OP_LITERAL:
            if (n > layout_size - at)
                return NPG_BAD_OPERATION;
            if (n > room)
                return NPG_TOO_LONG;
            memcpy(out + done, layout + at, n);
            at += n;
            done += n;
            break;
        case OP_PAGES:
        case OP_CONTENT: {
            const size_t header = kind == OP_PAGES ? 8 : 0;
            if (n > count - page)
                return NPG_BAD_COUNT;
            if (n > room / (header + page_size))
                return NPG_TOO_LONG;
            for (uint32_t i = 0; i < n; i++, page++) {
                if (header) {
                    uint64_t offset = le64(addresses + 8 * page) & (OFFSET_LIMIT - 1);
                    if (offset & (page_size - 1))
                        return NPG_BAD_OPERATION;
                    put_be64(out + done, offset | RAM_PAGE | RAM_CONTINUE);
                }
                memcpy(out + done + header, pages + (page << bits), page_size);
                done += header + page_size;
            }
            break;
        }
        case OP_ZEROS: {
            if (layout_size - at < 8)
                return NPG_BAD_OPERATION;
            uint64_t offset = le64(layout + at);
            at += 8;
            if (offset & (page_size - 1) || offset >= OFFSET_LIMIT ||
                n > (OFFSET_LIMIT - offset) >> bits)
                return NPG_BAD_OPERATION;
            if (n > room / 9)
                return NPG_TOO_LONG;
            for (uint32_t i = 0; i < n; i++, offset += page_size, done += 9) {
                put_be64(out + done, offset | RAM_ZERO | RAM_CONTINUE);
                out[done + 8] = 0;
            }
            break;
        }
        default:
            return NPG_BAD_OPERATION;
        }
    }
    if (done != total || page != count)
        return NPG_BAD_COUNT;
    return (int64_t)done;
}
