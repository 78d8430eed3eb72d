/* Makes system calls that no SQ needs, and prints the error of each: "name errno", 0 if it passed. */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/bpf.h>
#include <netinet/in.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* The caller's end of a new process; the new one ends here. */
static long parent(long result) {
    if (result == 0) _exit(0);
    return result;
}

static void report(const char *name, long result) {
    printf("%s %d\n", name, result < 0 ? errno : 0);
    fflush(stdout);
}

int main(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(1)};
    char block[256];
    int tcp = socket(AF_INET, SOCK_STREAM, 0);
    memset(block, 0, sizeof block);
    report("socket", tcp);
    report("connect", connect(tcp, (struct sockaddr *)&address, sizeof address));
    report("fast_open", sendto(tcp, block, 1, MSG_FASTOPEN, (struct sockaddr *)&address,
                               sizeof address));
    report("datagram", socket(AF_INET, SOCK_DGRAM, 0));
    report("netlink", socket(AF_NETLINK, SOCK_RAW, 0));
    report("unix", socket(AF_UNIX, SOCK_STREAM, 0));
    report("packet", socket(AF_PACKET, SOCK_RAW, 0));
    report("unshare", syscall(SYS_unshare, CLONE_NEWUSER));
    report("clone", parent(syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0)));
    report("clone3", parent(syscall(SYS_clone3, block, 64)));
    report("setns", syscall(SYS_setns, 0, 0));
    report("mount", syscall(SYS_mount, "none", "/", "tmpfs", 0, 0));
    report("bpf", syscall(SYS_bpf, BPF_PROG_LOAD, block, sizeof block));
    report("perf_event_open", syscall(SYS_perf_event_open, block, 0, -1, -1, 0));
    report("userfaultfd", syscall(SYS_userfaultfd, 0));
    report("io_uring_setup", syscall(SYS_io_uring_setup, 1, block));
    report("keyctl", syscall(SYS_keyctl, 0, -3, 0, 0, 0));
    report("process_vm_readv", syscall(SYS_process_vm_readv, getpid(), 0, 0, 0, 0, 0));
    report("personality", syscall(SYS_personality, 0x0400000));
    report("symlink", symlink("/", "link"));
    report("mknod", mknod("pipe", S_IFIFO | 0600, 0));
    report("ptrace", ptrace(PTRACE_TRACEME, 0, 0, 0));
    return 0;
}
