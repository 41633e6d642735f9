/* Page kernels and the splitter of QEMU migration streams: bytes in, bytes out.
 *
 * No policy, no I/O and no global state. Nothing allocates but npg_splitter_new. Every function may
 * run on any thread; one splitter belongs to one thread at a time.
 */
#ifndef NOVACRON_PAGES_H
#define NOVACRON_PAGES_H

#include <stddef.h>
#include <stdint.h>

/* One bit per page, lowest bit first; `bitmap` has room for (count + 7) / 8 bytes. Returns how many
 * pages are all zero. */
size_t npg_zero_pages(const uint8_t *data, size_t count, size_t page_size, uint8_t *bitmap);

/* Indices of the pages that differ. Returns how many. */
size_t npg_changed_pages(const uint8_t *old, const uint8_t *now, size_t count, size_t page_size,
                         uint64_t *indices);

/* Looks at pages *next .. count - 1 until `room` changed ones were found: copies each to `out` and
 * over its old copy. *next is the page to go on with. Returns how many were copied. A page that is
 * being written while this runs is copied once, and the same bytes go to both places. */
size_t npg_take_changed(uint8_t *old, const uint8_t *now, size_t count, size_t page_size,
                        uint8_t *out, size_t room, uint64_t *indices, size_t *next);

/* XXH64 with seed 0 of each page. */
void npg_hash_pages(const uint8_t *data, size_t count, size_t page_size, uint64_t *hashes);

/* --- QEMU migration streams ------------------------------------------------------------------ */

/* A batch is closed when one of these is reached ... */
#define NPG_PAGES_TARGET (1u << 20)  /* bytes of page contents */
#define NPG_LAYOUT_TARGET (1u << 20) /* bytes of layout */
#define NPG_JOINED_TARGET (2u << 20) /* bytes of stream */
/* ... and exceeds none of these, as one record may come on top. */
#define NPG_LAYOUT_MAX (NPG_LAYOUT_TARGET + (128u << 10))
#define NPG_JOINED_MAX (4u << 20)

#define NPG_PAGE_BITS_MIN 12
#define NPG_PAGE_BITS_MAX 16
#define NPG_BLOCKS_MAX 1024

/* Why a stream is not walked (npg_counters.reason). */
enum {
    NPG_WALKING = 0,
    NPG_DEVICE = 1,       /* a section without a length: looked through for the next RAM section */
    NPG_BAD_RECORD = 2,   /* a RAM section held what RAM sections do not hold: as above */
    NPG_NOT_QEMU = 3,     /* from here on: nothing is looked at any more */
    NPG_CONFIGURATION = 4,
    NPG_POSTCOPY = 5,
    NPG_MULTIFD = 6,
    NPG_TOO_MANY_BLOCKS = 7
};

/* Why npg_join refuses. */
enum {
    NPG_BAD_HEADER = -1,    /* not a layout of this version */
    NPG_BAD_COUNT = -2,     /* addresses, pages and layout do not belong together */
    NPG_BAD_OPERATION = -3, /* an unknown or impossible entry in the layout */
    NPG_TOO_LONG = -4       /* the stream would be longer than said or than allowed */
};

typedef struct {
    uint64_t bytes;        /* of the stream, so far */
    uint64_t opaque_bytes; /* of them passed through unwalked */
    uint64_t pages;        /* records with a page's content, packed ones too */
    uint64_t zero_pages;   /* records that say a page is zero */
    uint64_t ram_bytes;    /* the guest's memory, as the stream states it */
    uint32_t rounds;       /* passes over memory that were begun */
    uint32_t blocks;       /* RAM blocks */
    uint32_t resyncs;      /* times a RAM section was found again */
    int32_t reason;        /* NPG_WALKING, or why the stream is not walked now */
    uint32_t page_bits;
    char section[256];     /* the section that made it so, for NPG_DEVICE */
} npg_counters;

typedef struct npg_splitter npg_splitter;

/* NULL if memory is short or page_bits is out of range. */
npg_splitter *npg_splitter_new(uint32_t page_bits);
void npg_splitter_free(npg_splitter *s);

/* Splits `data` into the batch under way. `layout` has NPG_LAYOUT_MAX bytes, `pages` has
 * NPG_PAGES_TARGET and `addresses` 8 for each page of them; until npg_take the same three are passed
 * each time. *used is how much of `data` was taken. Returns 1 if the batch is full (take it, and call
 * again with the rest), 0 if all data was taken. */
int npg_split(npg_splitter *s, const uint8_t *data, size_t size, size_t *used, uint8_t *layout,
              uint8_t *addresses, uint8_t *pages);

/* Closes the batch: *layout_size and *page_count say what it holds, both 0 if nothing. With `all`
 * the beginning of a record that is not complete yet goes with it, else it stays inside. */
void npg_take(npg_splitter *s, int all, uint8_t *layout, size_t *layout_size, size_t *page_count);

void npg_count(const npg_splitter *s, npg_counters *counters);

/* The piece of stream that a batch was made of. Returns its length, or why not (negative). */
int64_t npg_join(const uint8_t *layout, size_t layout_size, const uint8_t *addresses,
                 size_t addresses_size, const uint8_t *pages, size_t pages_size, uint8_t *out,
                 size_t out_size);

#endif
