/* The page store: slots in a file, a table of their addresses, and one of their contents. */
#include "inside.h"

#include <stdlib.h>
#include <sys/mman.h>

#define ROOM_MIN 1024u
#define BUCKET 4u
#define TAIL_MAX 4u

static uint64_t scatter(const nld_store *s, uint64_t address)
{
    uint64_t h = (address ^ s->seed) * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 32) * 0xD6E8FEB86659FD93u;
    return h ^ h >> 32;
}

static uint32_t power_of_two(uint64_t at_least)
{
    uint32_t n = 1;
    while (n < at_least)
        n <<= 1;
    return n;
}

nld_store *nld_store_new(int fd, uint64_t count_at, uint64_t addresses_at, uint64_t pages_at,
                         uint32_t page_size, uint32_t capacity, int by_content, uint64_t seed)
{
    if (page_size < NLD_PAGE_SIZE_MIN || page_size > NLD_PAGE_SIZE_MAX || page_size % 64 ||
        capacity > 1u << 30)
        return NULL;
    nld_store *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->fd = fd;
    s->count_at = count_at;
    s->addresses_at = addresses_at;
    s->pages_at = pages_at;
    s->page_size = page_size;
    s->capacity = capacity;
    s->by_content = by_content;
    s->seed = seed;
    s->map_size = (size_t)capacity * page_size;
    if (s->map_size) {
        void *map = mmap(NULL, s->map_size, PROT_READ, MAP_SHARED, fd, (off_t)pages_at);
        if (map == MAP_FAILED) {
            free(s);
            return NULL;
        }
        s->map = map;
    }
    return s;
}

void nld_store_free(nld_store *s)
{
    if (!s)
        return;
    free(s->addresses);
    free(s->index);
    free(s->hashes);
    free(s->buckets);
    if (s->map)
        munmap((void *)s->map, s->map_size);
    free(s);
}

uint32_t nld_store_count(const nld_store *s) { return s->count; }

int nld_errno(const nld_store *s) { return s->error; }

uint64_t nld_store_memory(const nld_store *s)
{
    uint64_t bytes = sizeof *s + (uint64_t)s->room * 8;
    if (s->index)
        bytes += ((uint64_t)s->index_mask + 1) * 4;
    if (s->hashes)
        bytes += (uint64_t)s->room * 8 + ((uint64_t)s->bucket_mask + 1) * BUCKET * 4;
    return bytes;
}

/* The place of an address in the index: where it stands, or the empty one where it would. */
static uint32_t *place(const nld_store *s, uint64_t address)
{
    uint32_t at = (uint32_t)scatter(s, address) & s->index_mask;
    while (s->index[at] && s->addresses[s->index[at] - 1] != address)
        at = (at + 1) & s->index_mask;
    return &s->index[at];
}

static int grow(nld_store *s, uint64_t at_least)
{
    uint64_t room = s->room ? s->room : ROOM_MIN;
    while (room < at_least)
        room *= 2;
    if (room > s->capacity)
        room = s->capacity;
    if (room <= s->room)
        return 0;
    uint64_t *addresses = realloc(s->addresses, room * 8);
    if (!addresses)
        return NLD_NO_MEMORY;
    s->addresses = addresses;
    uint32_t entries = power_of_two(room * 2);
    uint32_t *index = calloc(entries, 4);
    if (!index)
        return NLD_NO_MEMORY;
    free(s->index);
    s->index = index;
    s->index_mask = entries - 1;
    if (s->by_content) {
        uint64_t *hashes = realloc(s->hashes, room * 8);
        if (!hashes)
            return NLD_NO_MEMORY;
        s->hashes = hashes;
        uint32_t count = power_of_two((room + 1) / 2);
        uint32_t *buckets = calloc((size_t)count * BUCKET, 4);
        if (!buckets)
            return NLD_NO_MEMORY;
        free(s->buckets);
        s->buckets = buckets;
        s->bucket_mask = count - 1;
    }
    s->room = (uint32_t)room;
    for (uint32_t slot = 0; slot < s->count; slot++) {
        *place(s, s->addresses[slot]) = slot + 1;
        if (s->by_content)
            nld_note_content(s, slot, s->hashes[slot]);
    }
    return 0;
}

uint32_t nld_find(const nld_store *s, uint64_t address)
{
    return s->room ? *place(s, address) - 1 : NLD_NO_SLOT; /* 0 - 1 is NLD_NO_SLOT */
}

uint32_t nld_slot_for(nld_store *s, uint64_t address, int *failed)
{
    *failed = 0;
    uint32_t slot = nld_find(s, address);
    if (slot != NLD_NO_SLOT || s->count >= s->capacity)
        return slot;
    if (s->count == s->room && (*failed = grow(s, (uint64_t)s->count + 1)) != 0)
        return NLD_NO_SLOT;
    slot = s->count++;
    s->addresses[slot] = address;
    if (s->hashes)
        s->hashes[slot] = 0;
    *place(s, address) = slot + 1;
    return slot;
}

uint32_t nld_find_content(const nld_store *s, uint64_t hash)
{
    if (!s->buckets)
        return NLD_NO_SLOT;
    const uint32_t *bucket = s->buckets + (size_t)((uint32_t)hash & s->bucket_mask) * BUCKET;
    for (uint32_t i = 0; i < BUCKET; i++) {
        if (bucket[i] && s->hashes[bucket[i] - 1] == hash)
            return bucket[i] - 1;
    }
    return NLD_NO_SLOT;
}

void nld_note_content(nld_store *s, uint32_t slot, uint64_t hash)
{
    if (!s->hashes)
        return;
    s->hashes[slot] = hash;
    if (!hash)
        return;
    uint32_t *bucket = s->buckets + (size_t)((uint32_t)hash & s->bucket_mask) * BUCKET;
    uint32_t *to = &bucket[hash >> 62];
    for (uint32_t i = 0; i < BUCKET; i++) {
        if (!bucket[i]) {
            to = &bucket[i];
            break;
        }
        uint64_t other = s->hashes[bucket[i] - 1];
        if (other == hash)
            return; /* one place for a content is enough */
        if (!other || (((uint32_t)other ^ (uint32_t)hash) & s->bucket_mask))
            to = &bucket[i]; /* that slot's content has changed since */
    }
    *to = slot + 1;
}

static int io(nld_store *s, int error)
{
    if (!error)
        return 0;
    s->error = error;
    return NLD_IO;
}

static int flush(nld_store *s)
{
    if (!s->run_count)
        return 0;
    const size_t size = (size_t)s->run_count * s->page_size;
    const uint64_t at = s->pages_at + (uint64_t)s->run_slot * s->page_size;
    s->run_count = s->run_tail = 0;
    return io(s, nld_write(s->fd, s->run_data, size, at));
}

int nld_goes_on(const nld_store *s, uint32_t slot, const uint8_t *data)
{
    const uint32_t count = s->run_count + s->run_tail;
    return s->run_count && slot == s->run_slot + count &&
           data == s->run_data + (size_t)count * s->page_size;
}

/* To write a few pages that are there already costs less than to write in two pieces. */
void nld_pass(nld_store *s, uint32_t slot, const uint8_t *data)
{
    if (s->run_tail < TAIL_MAX && nld_goes_on(s, slot, data))
        s->run_tail++;
}

int nld_put(nld_store *s, uint32_t slot, const uint8_t *data)
{
    if (nld_goes_on(s, slot, data)) {
        s->run_count += s->run_tail + 1;
        s->run_tail = 0;
        return 0;
    }
    int failed = flush(s);
    s->run_slot = slot;
    s->run_count = 1;
    s->run_data = data;
    return failed;
}

int nld_settle(nld_store *s)
{
    int failed = flush(s);
    if (failed || s->saved == s->count)
        return failed;
    /* The contents first, then their addresses, then how many there are: a process that is killed
     * in between leaves a file that says less than it holds. */
    uint8_t part[8 * 256];
    while (s->saved < s->count) {
        uint32_t n = s->count - s->saved < 256 ? s->count - s->saved : 256;
        for (uint32_t i = 0; i < n; i++)
            nld_keep(part + 8 * i, s->addresses[s->saved + i]);
        failed = io(s, nld_write(s->fd, part, 8 * n, s->addresses_at + 8 * (uint64_t)s->saved));
        if (failed)
            return failed;
        s->saved += n;
    }
    nld_keep(part, s->count);
    return io(s, nld_write(s->fd, part, 8, s->count_at));
}

int nld_store_load(nld_store *s, uint32_t count, const uint64_t *hashes)
{
    if (count > s->capacity || s->count)
        return NLD_BAD_TABLE;
    int failed = grow(s, count);
    uint8_t part[8 * 256];
    for (uint32_t done = 0; !failed && done < count;) {
        uint32_t n = count - done < 256 ? count - done : 256;
        failed = io(s, nld_read(s->fd, part, 8 * n, s->addresses_at + 8 * (uint64_t)done));
        for (uint32_t i = 0; !failed && i < n; i++, done++) {
            uint64_t address = nld_load(part + 8 * i);
            uint32_t *to = place(s, address);
            if (*to)
                return NLD_BAD_TABLE;
            s->addresses[done] = address;
            *to = done + 1;
            s->count = done + 1;
            nld_note_content(s, done, hashes ? hashes[done] : 0);
        }
    }
    s->saved = s->count;
    return failed;
}
