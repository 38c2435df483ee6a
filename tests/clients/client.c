// The C client: getaddrinfo and poll. Built twice, with glibc (dynamic: its own resolver and NSS) and static with musl.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#ifndef CLIENT
#define CLIENT "c"
#endif
#define CONNECTS 20
#define PATIENCE_MS 20000

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e3 + t.tv_nsec / 1e6;
}

// Splits "host:port" (or "[v6]:port") in place and resolves it as numbers or as a name.
static struct addrinfo *address_of(const char *text) {
    char copy[256];
    snprintf(copy, sizeof copy, "%s", text);
    char *colon = strrchr(copy, ':');
    *colon = 0;
    char *host = copy;
    if (*host == '[') {
        host++;
        host[strcspn(host, "]")] = 0;
    }
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    return getaddrinfo(host, colon + 1, &hints, &found) ? NULL : found;
}

static void print_name(const char *name) {
    printf("\"%s\":[", name);
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int error;
    if (!strncmp(name, "ptr:", 4)) {
        char host[NI_MAXHOST];
        hints.ai_flags = AI_NUMERICHOST;
        error = getaddrinfo(name + 4, NULL, &hints, &found);
        if (!error) error = getnameinfo(found->ai_addr, found->ai_addrlen, host, sizeof host, NULL, 0, NI_NAMEREQD);
        if (!error) printf("\"%s\"", host);
    } else {
        error = getaddrinfo(name, NULL, &hints, &found);
        for (struct addrinfo *a = found; !error && a; a = a->ai_next) {
            char host[NI_MAXHOST];
            getnameinfo(a->ai_addr, a->ai_addrlen, host, sizeof host, NULL, 0, NI_NUMERICHOST);
            printf("%s\"%s\"", a == found ? "" : ",", host);
        }
    }
    if (error) printf("\"!%s\"", error == EAI_NONAME || error == EAI_NODATA ? "NXDOMAIN" : gai_strerror(error));
    printf("]");
}

static int connect_to(const char *text) {
    struct addrinfo *a = address_of(text);
    if (!a) return -1;
    int fd = socket(a->ai_family, SOCK_STREAM, 0);
    if (connect(fd, a->ai_addr, a->ai_addrlen) == 0) return fd;
    close(fd);
    return -1;
}

// GET http://host:port/path or http://host/path; prints the body's first line.
static void print_http(const char *url) {
    char host[256], path[256] = "/", request[600], answer[65536];
    if (sscanf(url, "http://%255[^/]%255s", host, path) < 1) return;
    char target[300];
    snprintf(target, sizeof target, "%s%s", host, strchr(host, ':') ? "" : ":80");
    int fd = connect_to(target);
    if (fd < 0) {
        printf("\"!%s\"", strerror(errno));
        return;
    }
    int length = snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", path, host);
    if (write(fd, request, length) != length) return;
    ssize_t n = read(fd, answer, sizeof answer - 1);
    answer[n < 0 ? 0 : n] = 0;
    char *body = strstr(answer, "\r\n\r\n");
    body = body ? body + 4 : answer;
    body[strcspn(body, "\r\n")] = 0;
    printf("\"%s\"", body);
    close(fd);
}

static const char *errno_of(const char *text) {
    int fd = connect_to(text);
    if (fd >= 0) return "connected";
    return errno == ECONNREFUSED ? "ECONNREFUSED" : strerror(errno);
}

static double connect_many(const char *text) {
    struct addrinfo *a = address_of(text);
    struct pollfd fds[CONNECTS];
    double started = now_ms();
    for (int i = 0; i < CONNECTS; i++) {
        fds[i] = (struct pollfd){.fd = socket(a->ai_family, SOCK_STREAM | SOCK_NONBLOCK, 0), .events = POLLOUT};
        if (connect(fds[i].fd, a->ai_addr, a->ai_addrlen) && errno != EINPROGRESS) return -1;
    }
    for (int open = 0; open < CONNECTS;) {
        if (poll(fds, CONNECTS, PATIENCE_MS) <= 0) return -1;
        for (int i = 0; i < CONNECTS; i++) {
            if (fds[i].fd < 0 || !fds[i].revents) continue;
            int error = 0;
            socklen_t size = sizeof error;
            getsockopt(fds[i].fd, SOL_SOCKET, SO_ERROR, &error, &size);
            if (error) return -1;
            fds[i].fd = -1;
            open++;
        }
    }
    return now_ms() - started;
}

int main(int argc, char **argv) {
    if (argc != 5) return 64;
    printf("{\"client\":\"" CLIENT "\"");
    if (strcmp(argv[1], "-")) {
        printf(",\"names\":{");
        int first = 1;
        for (char *name = strtok(argv[1], ","); name; name = strtok(NULL, ","), first = 0) {
            printf("%s", first ? "" : ",");
            print_name(name);
        }
        printf("}");
    }
    if (strcmp(argv[2], "-")) {
        printf(",\"http\":");
        print_http(argv[2]);
    }
    if (strcmp(argv[3], "-")) printf(",\"refused\":\"%s\"", errno_of(argv[3]));
    if (strcmp(argv[4], "-")) printf(",\"connects_ms\":%.3f", connect_many(argv[4]));
    printf("}\n");
    return 0;
}
