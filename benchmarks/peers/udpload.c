/*
 * Keeps a number of datagrams outstanding against an echo and counts answers.
 *
 *   udpload HOST PORT OUTSTANDING SECONDS SIZE
 *
 * Batched (UDP_SEGMENT or sendmmsg, and recvmmsg), so that it is far cheaper than
 * what it loads.
 * Every datagram carries a number: nothing is sent twice.  What has not come
 * back within 200 ms of silence is counted lost and replaced.
 *
 * Prints one line: answers lost wrong seconds cpu-seconds.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>

#define BATCH 64

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec / 1e9;
}

static char out[BATCH * 2048], in[BATCH][2048];
static struct mmsghdr outgoing[BATCH], incoming[BATCH];
static struct iovec outVec[BATCH], inVec[BATCH];
static uint64_t number;
static int size, segments = 1;

/* Sends k datagrams as one that the kernel cuts up. */
static int sendJoined(int fd, int k) {
    char control[CMSG_SPACE(sizeof(uint16_t))] = {0};
    struct iovec all = {out, (size_t)k * size};
    struct msghdr message = {.msg_iov = &all, .msg_iovlen = 1,
                             .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *segment = CMSG_FIRSTHDR(&message);
    segment->cmsg_level = 17;  /* SOL_UDP */
    segment->cmsg_type = 103;  /* UDP_SEGMENT */
    segment->cmsg_len = CMSG_LEN(sizeof(uint16_t));
    *(uint16_t *)CMSG_DATA(segment) = size;
    return sendmsg(fd, &message, 0) >= 0;
}

static void sendSome(int fd, int n) {
    while (n > 0) {
        int k = n < BATCH ? n : BATCH;
        for (int i = 0; i < k; i++) {
            memcpy(out + i * size, &number, sizeof number);
            number++;
        }
        if (k > 1 && segments && size <= 900 && sendJoined(fd, k)) {
            n -= k;
            continue;
        }
        segments = segments && k == 1;
        int sent = sendmmsg(fd, outgoing, k, 0);
        n -= sent > 0 ? sent : k;
    }
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    int outstanding = atoi(argv[3]);
    size = atoi(argv[5]);
    if (size < 8 || size > 2048) return 2;
    double seconds = atof(argv[4]);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[2]))};
    inet_pton(AF_INET, argv[1], &to.sin_addr);
    int fd = socket(AF_INET, SOCK_DGRAM, 0), room = 4 << 20;
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
    if (connect(fd, (void *)&to, sizeof to)) return 1;
    for (int i = 0; i < BATCH; i++) {
        memset(out + i * size, 'x', size);
        outVec[i] = (struct iovec){out + i * size, size};
        inVec[i] = (struct iovec){in[i], sizeof in[i]};
        outgoing[i].msg_hdr = (struct msghdr){.msg_iov = &outVec[i], .msg_iovlen = 1};
        incoming[i].msg_hdr = (struct msghdr){.msg_iov = &inVec[i], .msg_iovlen = 1};
    }
    long answers = 0, lost = 0, wrong = 0;
    double start = now(), end = start + seconds;
    sendSome(fd, outstanding);
    int open = outstanding;
    struct pollfd wait = {fd, POLLIN, 0};
    while (now() < end) {
        int n = recvmmsg(fd, incoming, BATCH, MSG_DONTWAIT, NULL);
        if (n <= 0) {
            if (poll(&wait, 1, 200) == 0) {
                lost += open;
                open = outstanding;
                sendSome(fd, outstanding);
            }
            continue;
        }
        for (int i = 0; i < n; i++)
            if (incoming[i].msg_len != (unsigned)size) wrong++;
        answers += n;
        open -= n < open ? n : open;
        sendSome(fd, n);
        open += n;
    }
    double took = now() - start;
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    printf("%ld %ld %ld %.4f %.4f\n", answers, lost, wrong, took,
           used.ru_utime.tv_sec + used.ru_utime.tv_usec / 1e6 + used.ru_stime.tv_sec +
               used.ru_stime.tv_usec / 1e6);
    return 0;
}
