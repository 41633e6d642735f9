/* One direction between two TUN devices: a thread that reads one, writes the other and lets a link
 * decide what arrives when. */
#ifndef NETLAB_WIRE_H
#define NETLAB_WIRE_H

#include "link.h"
#include "packet.h"

#include <pthread.h>
#include <stdio.h>

#define WIRE_NAME_MAX 64

struct wire {
    char name[WIRE_NAME_MAX];
    int from, to;                       /* TUN devices */
    int wake;                           /* an eventfd: something was set */
    int realtime;
    int stopping;
    pthread_t thread;
    pthread_mutex_t lock;               /* of all that follows */
    struct link link;
    struct packets packets;
    struct segment *spare;
    uint64_t quantum;                   /* ns by which reads and writes may be gathered */
    uint64_t drained;                   /* when the device was last empty */
    double oversleep;                   /* ns: by how much the clock's wake-ups come late, mean */
    int gathering;                      /* the clock wakes the thread, and no packet */
    uint64_t writes, write_errors, late_max;
    double late_sum;
};

/* Nanoseconds since the emulator began. */
uint64_t wire_now(void);
void wire_begin_clock(void);

/* Opens a TUN device in a namespace. Returns its descriptor, or -1 with errno set and the step that
 * failed in *step. */
int wire_open_tun(const char *netns, const char *name, int offload, const char **step);

int wire_init(struct wire *, const char *name, int from, int to, int offload, uint64_t seed);
int wire_start(struct wire *);
void wire_stop(struct wire *);

/* Take new figures, as link_set does; the caller holds the lock. */
int wire_set(struct wire *, const struct figures *, const char **reason);

/* Something was set: the thread is to look at it at once. */
void wire_wake(struct wire *);

/* Its counters as a JSON object. */
void wire_print(FILE *, struct wire *);

#endif
