/* Stands in for QEMU inside the tiny guest while its cgroup v2 files are recorded: vCPU threads that burn CPU, memory that is touched again
 * and again, direct reads from a disk. The name of the program and `-uuid` are what sampling looks for; other arguments are
 *   qemu-system-x86_64 -uuid UUID VCPUS MIB DISK
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *vcpu(void *number)
{
    char name[16];
    snprintf(name, sizeof name, "CPU %ld/KVM", (long)number);
    pthread_setname_np(pthread_self(), name);
    for (volatile unsigned x = 1;; x = x * 1664525u + 1013904223u)
        ;
    return NULL;
}

static void *reader(void *disk)
{
    enum { BLOCK = 65536, BLOCKS = 128 };
    void *block = NULL;
    int file = open(disk, O_RDONLY | O_DIRECT);
    if (file < 0 || posix_memalign(&block, 4096, BLOCK))
        return NULL;
    for (unsigned at = 0;; at++)
        if (pread(file, block, BLOCK, (off_t)(at % BLOCKS) * BLOCK) < 0)
            return NULL;
}

int main(int count, char **arguments)
{
    pthread_t thread;
    if (count != 6)
        return 2;
    size_t size = (size_t)atoi(arguments[4]) << 20;
    char *memory = malloc(size);
    for (long number = 0; number < atoi(arguments[3]); number++)
        pthread_create(&thread, NULL, vcpu, (void *)number);
    pthread_create(&thread, NULL, reader, arguments[5]);
    sleep(2); /* time to be put into its groups: what is touched there is charged there */
    for (;; usleep(100000))
        for (size_t at = 0; memory && at < size; at += 4096)
            memory[at]++;
}
