/* The rungs of hierarchical delta encoding for a whole batch of pages, and the page store that they
 * stand on: page contents in a file, found by address and by content.
 *
 * No policy and no global state. A store's file is written by pwrite alone, so that a full disk is an
 * answer and not a signal, and read through a mapping. Every function may run on any thread;
 * one store belongs to one thread at a time.
 */
#ifndef NOVACRON_LADDER_H
#define NOVACRON_LADDER_H

#include <stddef.h>
#include <stdint.h>

#define NLD_PAGE_SIZE_MIN 64
#define NLD_PAGE_SIZE_MAX 65536
/* Bytes that one page takes at most in `places` and in `args`. */
#define NLD_PLACE_MAX 10
#define NLD_ARG_MAX 10

/* How a page is written, one byte per page in `ops`. */
enum {
    NLD_UNIFORM = 0,   /* one byte repeated: that byte in `args` */
    NLD_SAME = 1,      /* what the store has at this address */
    NLD_COPY = 2,      /* what the store has in another slot: that slot in `args` */
    NLD_REFERENCE = 3, /* a page that the decoding side offered: its number in `args` */
    NLD_DELTA = 4,     /* what the store has at this address, but for some words */
    NLD_LITERAL = 5,   /* its content in `literals` */
    NLD_CLASSES = 6
};

/* What nld_encode may look for. */
#define NLD_FIND_CONTENT 1u
#define NLD_FIND_DELTA 2u

/* Negative answers. */
enum {
    NLD_BAD_PLACE = -1,     /* the addresses are not written as they should be */
    NLD_BAD_OPERATION = -2, /* an unknown operation, or one that needs a slot where there is none */
    NLD_BAD_ARGUMENT = -3,  /* an argument is damaged, or names what is not there */
    NLD_BAD_LENGTH = -4,    /* the parts are longer or shorter than the operations say */
    NLD_NO_MEMORY = -5,
    NLD_IO = -6,            /* reading or writing failed: see nld_errno */
    NLD_BAD_TABLE = -7      /* a file's table of addresses names one twice */
};

typedef struct nld_store nld_store;

/* A store over a file: `count_at` is where 8 bytes say how many slots are in use, `addresses_at`
 * where their addresses are, 8 bytes each, and `pages_at` (a multiple of the system's page size)
 * where their contents are. The file stays the caller's, and is long enough for `capacity` pages. `by_content` makes contents findable, as an encoder needs it; `seed` seeds the
 * hashes that do it, and the table of addresses. NULL if memory is short or a size impossible. */
nld_store *nld_store_new(int fd, uint64_t count_at, uint64_t addresses_at, uint64_t pages_at,
                         uint32_t page_size, uint32_t capacity, int by_content, uint64_t seed);
void nld_store_free(nld_store *s);
uint32_t nld_store_count(const nld_store *s);
/* Why the last call gave NLD_IO. */
int nld_errno(const nld_store *s);
/* Bytes of memory that the store takes. */
uint64_t nld_store_memory(const nld_store *s);

/* Begin with the first `count` slots of the file, whose contents have these hashes by the store's
 * seed (NULL: not known, so not findable). 0, or why not. */
int nld_store_load(nld_store *s, uint32_t count, const uint64_t *hashes);

/* Offered pages, found by the hash of their content with the store's seed. Keeps no reference to
 * `hashes`. */
typedef struct nld_references nld_references;
nld_references *nld_references_new(const uint64_t *hashes, uint32_t count);
void nld_references_free(nld_references *r);
/* Forget the numbers first .. first + count - 1. */
void nld_references_drop(nld_references *r, uint32_t first, uint32_t count);

typedef struct {
    uint64_t places, args, masks, words, literals; /* bytes written to each */
    uint32_t pages[NLD_CLASSES];                   /* pages of each class */
    uint32_t literals_are_pages; /* all pages are literals and `literals` was left alone */
} nld_encoded;

/* Encodes `count` pages. Room: places and args NLD_PLACE_MAX and NLD_ARG_MAX bytes per page, ops 1,
 * masks page_size / 64, words page_size / 2, literals page_size. `references` may be NULL.
 * 0, or NLD_IO or NLD_NO_MEMORY: what the store holds is then undefined. */
int nld_encode(nld_store *s, const nld_references *references, uint32_t find,
               const uint8_t *addresses, const uint8_t *pages, uint32_t count, uint8_t *places,
               uint8_t *ops, uint8_t *args, uint8_t *masks, uint8_t *words, uint8_t *literals,
               nld_encoded *encoded);

/* Where offered pages are: page `i` in the file fds[origin[i]] at offset[i]; -1 for a file that is
 * gone. */
typedef struct {
    const int32_t *fds;
    uint32_t fd_count;
    const uint32_t *origin;
    const uint64_t *offset;
    uint32_t count;
} nld_origins;

typedef struct {
    const uint8_t *places, *ops, *args, *masks, *words, *literals;
    size_t places_size, args_size, masks_size, words_size, literals_size;
} nld_parts;

/* Decodes `count` pages into `addresses` (8 bytes each) and `pages`. `origins` may be NULL.
 * 0, or why not: what the store and the buffers hold is then undefined, but nothing was read or
 * written out of bounds. */
int nld_decode(nld_store *s, const nld_origins *origins, const nld_parts *parts, uint32_t count,
               uint8_t *addresses, uint8_t *pages);

/* XXH64 of each page. */
void nld_hash_pages(const uint8_t *data, uint64_t count, uint32_t page_size, uint64_t seed,
                    uint64_t *hashes);

/* The same of pages in a file, with one seed or (if `second` is not NULL) with two in one pass.
 * `work` has `work_size` bytes, a page at least. 0, or the number of the system's error; a file
 * that ends too early gives EIO. */
int nld_hash_file(int fd, uint64_t at, uint64_t count, uint32_t page_size, uint64_t seed,
                  uint64_t *hashes, uint64_t second_seed, uint64_t *second, uint8_t *work,
                  size_t work_size);

#endif
