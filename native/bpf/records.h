/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What passes from our programs to user space. host/bpf/tasks.py declares the same as a numpy dtype; a test
 * compares the two by the BTF of the compiled program.
 */
#ifndef MEMSCULPT_RECORDS_H
#define MEMSCULPT_RECORDS_H

/* One thread. Sums of a process are user space's: the records of a thread group need not follow one another. */
struct task_record {
	__u64 start_boottime_ns;
	__u64 cpu_ns;          /* of this thread; of the leader also what threads that have ended had used */
	__u64 minor_faults;    /* likewise */
	__u64 major_faults;    /* likewise */
	__u64 read_bytes;      /* from storage; likewise. 0 in a kernel that does not count it */
	__u64 written_bytes;
	__s64 file_pages;      /* of the whole process, 0 in all but the leader; as statm has them: in batches per */
	__s64 anon_pages;      /* processor, so that each may be off by some 64 pages */
	__s64 swapped_pages;
	__s64 shmem_pages;
	__u64 memory_cgroup;   /* inode number of the cgroup that memory is charged to; 0 without the controller */
	__u64 unified_cgroup;  /* of the cgroup in the unified hierarchy, where PSI is */
	__u32 pid;             /* of the process (thread group) */
	__u32 thread;
	__u32 user;
	__u32 flags;           /* PF_... of include/linux/sched.h */
	char comm[16];
};

/* One entry of a process's page tables that holds pages: 2 MiB of them in a table, or one huge page. */
struct walk_record {
	__u64 address; /* of the first page */
	__u64 entry;   /* the entry itself, as the processor reads it */
	__s32 table;   /* which of the copied tables it points to; -1: it is a huge page */
	__u32 pages;   /* 4 KiB pages that it spans: 512, or 262,144 for a page of 1 GiB */
};

enum walk_status {
	WALK_NOT_FOUND = 0, /* no such process, or none that this kernel shows to BPF */
	WALK_NO_MEMORY = 1, /* a kernel thread, a zombie */
	WALK_DONE = 2,
	WALK_MORE = 3,      /* no room or time left: go on at `at` */
	WALK_GONE = 4,      /* the memory was given up in the middle (exit, exec): what was copied is void */
};

/* Numbers in place of a stack: pages went away, or moved. */
enum fault_other {
	PAGES_UNMAPPED = -1000, /* `words[0]` bytes from `address` on */
	PAGES_BROKEN_OFF = -1001, /* the heap now ends at `address` */
	PAGES_MOVING = -1002,   /* `words[0]` bytes from `address` on, to where the next record of the thread tells */
	PAGES_MOVED = -1003,    /* to `address`; nothing happened where that is no address */
};

#define STACK_WORDS 48 /* glibc's malloc has its return address 33 words up, as compiled by Debian */

/* A page fault of the process that is watched, or one of fault_other. */
struct fault_record {
	__u64 address;
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__s32 stack;    /* number of the user stack; negative: why there is none */
	__u32 thread;
	__u32 copy;     /* number of its stack_copy; 0: there was no room for one */
	__u32 reserved;
	__u64 words[STACK_WORDS]; /* top of the user stack: return addresses are among them where frames are missing */
};

struct fault_state {
	__u32 pid;     /* asked: whose faults */
	__u32 every;   /* asked: only every so many faults are recorded */
	__u64 seen;    /* answered: faults of the process */
	__u64 dropped; /* answered: of those to be recorded, how many found no room */
	__u64 copied;  /* answered: the number of the last stack_copy */
};

#define COPY_WORDS 512 /* 4 KiB: from malloc to main in a redis-server are some 2 KiB */

/* The beginning of a user stack, and the registers that it is unwound with. */
struct stack_copy {
	__u32 number;
	__u32 bytes;   /* of `words`, as far as the stack could be read */
	__u64 ip;
	__u64 sp;      /* address of words[0] */
	__u64 bp;
	__u64 words[COPY_WORDS];
};

#define SAMPLE_FRAMES 64

/* A page fault of one of many processes that are watched at once. The stack is in the record, not in a table: a table
 * that is shared by all and emptied now and then would give the numbers of old stacks to new ones. */
struct sample_record {
	__u64 address;
	__u64 time_ns; /* CLOCK_MONOTONIC */
	__u32 pid;
	__u32 shift;   /* this page is one of 1 << shift */
	__s64 depth;   /* bytes of `frames` that were filled; negative: why there is no stack */
	__u64 frames[SAMPLE_FRAMES];
	__u64 words[STACK_WORDS];
};

/* One process that is watched: key is its pid. */
struct sample_rate {
	__u64 start_ticks; /* asked: of which life of this pid, in clock ticks after boot */
	__u32 shift;       /* asked: one page in 1 << shift; rises by itself when `left` is used up */
	__s32 left;        /* asked: how many more may be recorded before that */
	__u32 refill;      /* asked: what `left` is then */
	__u32 reserved;
	__u64 seen;        /* answered: faults of the process, recorded or not */
	__u64 dropped;     /* answered: how many of those to be recorded found no room */
};

/* What is asked, and what is answered in the same place. */
struct walk_state {
	__u64 base;   /* of the kernel's direct map of all memory */
	__u64 at;     /* asked: where to begin; answered: where to go on */
	__u64 end;    /* first address that is not asked for */
	__u64 root;   /* answered: address of the top table, from which the base can be guessed */
	__u32 pid;
	__u32 levels; /* 4 or 5 */
	__u32 status; /* enum walk_status */
	__u32 record_count;
	__u32 table_count;
	__u32 torn_count;   /* tables that changed under the walk and were read again */
	__u32 failed_count; /* reads that the kernel refused: a wrong base, or memory without a mapping */
	__u32 reserved;
};

#endif
