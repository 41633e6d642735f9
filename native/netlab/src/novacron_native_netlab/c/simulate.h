#ifndef NETLAB_SIMULATE_H
#define NETLAB_SIMULATE_H

/* Sends packets of a made-up load through one link in made-up time and prints what became of them;
 * the same words give the same answer everywhere. Returns the exit status. */
int simulate(int count, char **words);

#endif
