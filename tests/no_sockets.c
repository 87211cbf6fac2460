/* Records every attempt to reach or look up a host, and refuses those to any other machine. For LD_PRELOAD. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void record(const char *what, const char *host, int port) {
    char line[512];
    const char *path = getenv("NO_SOCKETS_LOG");
    int size = snprintf(line, sizeof line, "%s %s %d\n", what, host, port);
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file < 0 || write(file, line, size) != size) abort();
    close(file);
}

/* 0: not of the internet, or this machine; -1: another machine */
static int judge(const char *what, const struct sockaddr *address) {
    char host[INET6_ADDRSTRLEN] = "";
    if (address && address->sa_family == AF_INET) {
        const struct sockaddr_in *in = (const struct sockaddr_in *)address;
        inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        record(what, host, ntohs(in->sin_port));
        return (ntohl(in->sin_addr.s_addr) >> 24) == 127 ? 0 : -1;
    }
    if (address && address->sa_family == AF_INET6) {
        const struct sockaddr_in6 *in = (const struct sockaddr_in6 *)address;
        inet_ntop(AF_INET6, &in->sin6_addr, host, sizeof host);
        record(what, host, ntohs(in->sin6_port));
        return IN6_IS_ADDR_LOOPBACK(&in->sin6_addr) ? 0 : -1;
    }
    return 0;
}

int connect(int fd, const struct sockaddr *address, socklen_t size) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    if (judge("connect", address)) { errno = EACCES; return -1; }
    return real(fd, address, size);
}

ssize_t sendto(int fd, const void *data, size_t bytes, int flags, const struct sockaddr *address, socklen_t size) {
    ssize_t (*real)(int, const void *, size_t, int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "sendto");
    if (judge("sendto", address)) { errno = EACCES; return -1; }
    return real(fd, data, bytes, flags, address, size);
}

ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
    ssize_t (*real)(int, const struct msghdr *, int) = dlsym(RTLD_NEXT, "sendmsg");
    if (judge("sendmsg", message->msg_name)) { errno = EACCES; return -1; }
    return real(fd, message, flags);
}

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    if (host) record("getaddrinfo", host, 0);
    if (host && strcmp(host, "localhost") && strncmp(host, "127.", 4) && strcmp(host, "::1")) return EAI_FAIL;
    return real(host, service, hints, found);
}

struct hostent *gethostbyname(const char *host) {
    record("gethostbyname", host, 0);
    return NULL;
}
