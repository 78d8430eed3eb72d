/* Holds a network namespace open: waits until it is told to end. Process 1 ignores signals without a
 * handler, so SIGTERM needs one. */
#include <signal.h>
#include <unistd.h>

static void leave(int signal) {
    (void)signal;
    _exit(0);
}

int main(void) {
    signal(SIGTERM, leave);
    signal(SIGINT, leave);
    for (;;) pause();
}
