/* A small pthread pool. No OpenMP: libgomp deadlocks in a forked child and fights with other libraries' teams.
 *
 * Workers start lazily at the first job that has several tasks. Who waits, looks for some microseconds before it sleeps:
 * the layers of a model follow each other that closely, and to wake a thread takes longer than a small layer. One job
 * runs at a time; a second caller, and a task that calls back in, runs its tasks itself, so nothing ever waits for a
 * pool that is busy. A forked child forgets its parent's workers (they do not exist there) and starts its own when it
 * needs them.
 */
#define _GNU_SOURCE
#include "pyq.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum {
    MAX_THREADS = 256,
    LOOKS = 2000, /* times to look before sleeping: 20 to 40 us */
};

static pthread_mutex_t entry = PTHREAD_MUTEX_INITIALIZER; /* held by the caller whose job the pool runs */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;  /* guards what follows */
static pthread_cond_t work = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static int started, wanted;
static atomic_int active;
static atomic_ullong generation;
static pyq_task_fn job;
static void *job_context;
static atomic_int thread_count;

/* Equal parts of a job's tasks, one for each of its threads. */
typedef struct {
    _Alignas(64) atomic_llong next; /* no two in one line */
    int64_t end;
} share;
static share shares[MAX_THREADS];

static int available_cpus(void) {
#ifdef __linux__
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (int)n : 1;
}

/* threadpoolctl looks these two up in the extension; all else is hidden. */
#define EXPORTED __attribute__((visibility("default")))

EXPORTED int32_t pyq_get_num_threads(void) {
    int n = atomic_load(&thread_count);
    if (n > 0) return n;
    const char *text = getenv("PYQ_NUM_THREADS");
    n = text ? atoi(text) : 0;
    pyq_set_num_threads(n > 0 ? n : available_cpus());
    return atomic_load(&thread_count);
}

EXPORTED void pyq_set_num_threads(int32_t n) { atomic_store(&thread_count, n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n); }

static void share_out(int64_t tasks, int count) {
    for (int i = 0; i < count; i++) {
        atomic_store(&shares[i].next, i * tasks / count);
        shares[i].end = (i + 1) * tasks / count;
    }
}

/* The tasks of thread `own` of `count`, then what others have left. Neighbouring tasks read the same lines: the rows that a
 * thread computes are mostly those that it padded, and lie in its own cache. */
static void run_tasks(pyq_task_fn fn, void *context, int own, int count) {
    for (int i = 0; i < count; i++) {
        share *s = &shares[(own + i) % count];
        for (int64_t task; (task = atomic_fetch_add(&s->next, 1)) < s->end;) fn(context, task);
    }
}

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Worker `index` joins a job only if that wants so many: lowering the thread count leaves the rest asleep. */
static void *worker(void *argument) {
    int index = (int)(intptr_t)argument;
    unsigned long long seen = 0;
    for (;;) {
        for (int i = 0; i < LOOKS && atomic_load(&generation) == seen; i++) relax();
        pthread_mutex_lock(&lock);
        while (generation == seen || index >= wanted) {
            seen = generation;
            pthread_cond_wait(&work, &lock);
        }
        seen = generation;
        active++;
        pyq_task_fn fn = job;
        void *context = job_context;
        int threads = wanted + 1;
        pthread_mutex_unlock(&lock);
        run_tasks(fn, context, index + 1, threads);
        pthread_mutex_lock(&lock);
        if (--active == 0) pthread_cond_signal(&done);
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static void before_fork(void) {
    pthread_mutex_lock(&entry);
    pthread_mutex_lock(&lock);
}

static void after_fork_in_parent(void) {
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&entry);
}

static void after_fork_in_child(void) {
    pthread_mutex_init(&entry, NULL);
    pthread_mutex_init(&lock, NULL);
    pthread_cond_init(&work, NULL);
    pthread_cond_init(&done, NULL);
    started = wanted = 0;
    atomic_store(&active, 0);
}

static void start_workers(int n) {
    static int registered;
    if (!registered) registered = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child) == 0;
    for (; started < n; started++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)started) != 0) return; /* fewer is still right */
        pthread_detach(thread);
    }
}

/* Call fn(context, i) for every i < tasks, in any order, on up to pyq_get_num_threads() threads; returns when all ran. */
void pyq_parallel(pyq_task_fn fn, void *context, int64_t tasks) {
    int helpers = pyq_get_num_threads() - 1;
    if (helpers > tasks - 1) helpers = (int)(tasks - 1);
    if (helpers < 1 || pthread_mutex_trylock(&entry) != 0) {
        for (int64_t i = 0; i < tasks; i++) fn(context, i);
        return;
    }
    pthread_mutex_lock(&lock);
    start_workers(helpers);
    job = fn, job_context = context, wanted = helpers;
    share_out(tasks, helpers + 1);
    generation++;
    pthread_cond_broadcast(&work);
    pthread_mutex_unlock(&lock);
    run_tasks(fn, context, 0, helpers + 1);
    for (int i = 0; i < LOOKS && atomic_load(&active) > 0; i++) relax();
    pthread_mutex_lock(&lock);
    wanted = 0; /* a worker that wakes only now finds nothing to do and must not touch a job that is over */
    while (active > 0) pthread_cond_wait(&done, &lock);
    pthread_mutex_unlock(&lock);
    pthread_mutex_unlock(&entry);
}
