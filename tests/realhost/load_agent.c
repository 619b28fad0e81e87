/* Load agent of the tiny guest: one command per line on a virtio-serial port, answered by lines and a final "." line.
 *
 *   cpu PERMILLE THREADS   each of THREADS threads burns PERMILLE/1000 of a CPU
 *   mem MIB                hold MIB of touched memory, and keep touching it
 *   net ADDRESS PORT KBIT  send UDP at KBIT kbit/s (frame bytes, 42 bytes of header each)
 *   work                   units of CPU work done since boot
 *   sh COMMAND             run it, answer its output
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { MAX_THREADS = 8, PAGE = 4096, PAYLOAD = 1400, FRAME = PAYLOAD + 42 };

static atomic_int cpu_permille, cpu_threads;
static atomic_long memory_mib, net_kbit;
static atomic_ullong work_done;
static struct sockaddr_in destination;

static double now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void rest_until(double when)
{
    double left = when - now();
    if (left > 0)
        usleep((useconds_t)(left * 1e6));
}

static void *burn(void *argument)
{
    long index = (long)argument;
    for (;;) {
        double start = now(), busy = atomic_load(&cpu_permille) / 1000.0 * 0.1;
        if (index < atomic_load(&cpu_threads)) {
            volatile unsigned x = 1;
            while (now() - start < busy) {
                for (int i = 0; i < 2000; i++)
                    x = x * 1664525u + 1013904223u;
                atomic_fetch_add(&work_done, 1);
            }
        }
        rest_until(start + 0.1);
    }
    return NULL;
}

static void *hold(void *argument)
{
    (void)argument;
    char *block = NULL;
    size_t have = 0;
    for (;;) {
        size_t want = (size_t)atomic_load(&memory_mib) << 20;
        if (want != have) {
            if (block)
                munmap(block, have);
            block = NULL, have = 0;
            if (want) {
                block = mmap(NULL, want, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
                if (block == MAP_FAILED)
                    block = NULL, atomic_store(&memory_mib, 0);
                else
                    have = want;
            }
        }
        for (size_t i = 0; i < have; i += PAGE)
            block[i]++;
        usleep(200000);
    }
    return NULL;
}

static void *flood(void *argument)
{
    (void)argument;
    static char payload[PAYLOAD];
    int udp = socket(AF_INET, SOCK_DGRAM, 0);
    for (;;) {
        double start = now();
        for (long bytes = atomic_load(&net_kbit) * 125 / 50; bytes > 0; bytes -= FRAME)
            sendto(udp, payload, sizeof payload, 0, (struct sockaddr *)&destination, sizeof destination);
        rest_until(start + 0.02);
    }
    return NULL;
}

static void run(int port, char *line)
{
    char address[64];
    int permille, threads, number;
    long amount;
    if (sscanf(line, "cpu %d %d", &permille, &threads) == 2) {
        atomic_store(&cpu_permille, permille);
        atomic_store(&cpu_threads, threads);
    } else if (sscanf(line, "mem %ld", &amount) == 1) {
        atomic_store(&memory_mib, amount);
    } else if (sscanf(line, "net %63s %d %ld", address, &number, &amount) == 3) {
        atomic_store(&net_kbit, 0);
        destination.sin_family = AF_INET;
        destination.sin_port = htons((unsigned short)number);
        inet_aton(address, &destination.sin_addr);
        atomic_store(&net_kbit, amount);
    } else if (!strcmp(line, "work")) {
        dprintf(port, "%llu\n", (unsigned long long)atomic_load(&work_done));
    } else if (!strncmp(line, "sh ", 3)) {
        char output[512];
        FILE *pipe = popen(line + 3, "r");
        while (pipe && fgets(output, sizeof output, pipe))
            dprintf(port, "%s", output);
        if (pipe)
            pclose(pipe);
    } else {
        dprintf(port, "unknown command: %s\n", line);
    }
    dprintf(port, ".\n");
}

int main(int count, char **arguments)
{
    int port = count == 2 ? open(arguments[1], O_RDWR) : -1;
    if (port < 0) {
        perror("control port");
        return 1;
    }
    pthread_t thread;
    for (long i = 0; i < MAX_THREADS; i++)
        pthread_create(&thread, NULL, burn, (void *)i);
    pthread_create(&thread, NULL, hold, NULL);
    pthread_create(&thread, NULL, flood, NULL);
    char line[4096];
    size_t length = 0;
    for (;;) {
        char byte;
        if (read(port, &byte, 1) != 1) { /* nobody is connected on the host's side */
            length = 0;
            usleep(50000);
        } else if (byte != '\n') {
            if (length < sizeof line - 1)
                line[length++] = byte;
        } else {
            line[length] = 0;
            length = 0;
            run(port, line);
        }
    }
}
