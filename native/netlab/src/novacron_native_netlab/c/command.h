/*
 * The commands of an emulator: lines of words, from the file it begins with and from its socket.
 *
 *     pair THERE BACK NETNS DEVICE NETNS DEVICE OFFLOAD SEED   two wires, named THERE and BACK
 *     set WIRE KEY=VALUE ...      figures of a wire, see keys[] in command.c
 *     trace WIRE FILE             a delivery trace in place of the rate; "-" for none
 *     outage WIRE AFTER LENGTH    ns from now, and for how many ns
 *     stats                       counters of all wires
 */
#ifndef NETLAB_COMMAND_H
#define NETLAB_COMMAND_H

#include "link.h"

#include <stdio.h>

#define COMMAND_MAX 4096                /* bytes of a line */

/* Carries out one line (which it cuts up) and writes the answer, a JSON object, to `out`. Returns 0,
 * or -1 if it was refused: the answer is {"error": "..."} then. */
int command_run(char *line, FILE *out);

/* Sets one figure by KEY=VALUE (which it cuts up). Returns 0, or -1 with a reason. */
int command_figure(struct figures *, char *word, const char **reason);

/* Reads a trace. Returns 0, or -1 with a reason. */
int command_read_trace(const char *path, struct trace *, const char **reason);

/* Text as a JSON string. */
void command_print_text(FILE *, const char *text);

int command_start(void);                /* start all wires */
void command_stop(void);                /* stop them */

#endif
