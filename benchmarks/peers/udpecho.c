/*
 * The cheapest echo there is (recvmmsg, sendmmsg): what the load generator can
 * drive at least.  Prints its port.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>

#define BATCH 64

static char room[BATCH][2048];

int main(void) {
    struct sockaddr_in me = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof me;
    static struct mmsghdr messages[BATCH];
    static struct iovec parts[BATCH];
    static struct sockaddr_in names[BATCH];
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (bind(fd, (void *)&me, sizeof me)) return 1;
    getsockname(fd, (void *)&me, &length);
    printf("%d\n", ntohs(me.sin_port));
    fflush(stdout);
    for (;;) {
        for (int i = 0; i < BATCH; i++) {
            parts[i] = (struct iovec){room[i], sizeof room[i]};
            messages[i].msg_hdr = (struct msghdr){
                .msg_name = &names[i], .msg_namelen = sizeof names[i],
                .msg_iov = &parts[i], .msg_iovlen = 1};
        }
        int n = recvmmsg(fd, messages, BATCH, MSG_WAITFORONE, NULL);
        for (int i = 0; i < n; i++) parts[i].iov_len = messages[i].msg_len;
        if (n > 0) sendmmsg(fd, messages, n, 0);
    }
}
