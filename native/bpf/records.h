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

#endif
