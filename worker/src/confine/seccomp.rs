//! seccomp: the system calls that a session may not make, as programs for the kernel's filter.
//!
//! The table is data; [`program`] turns it into instructions. A refused call fails with an error, so that software that
//! merely tries goes on; a call by a foreign ABI kills, because numbers mean other calls there.
#![allow(unsafe_code)]

use std::io;

use libc::{EAFNOSUPPORT, ENOSYS, ENOTTY, EPERM, c_long};
use serde::{Deserialize, Serialize};

use super::attributes::{Attributes, CALLS, DISOWNED, UNKNOWN_FROM};

/// When a listed call is refused. Arguments count from 0; the kernel reads these as 32 bits.
enum When {
    Always(i32),
    /// `argument & mask` is one of these.
    Any {
        argument: u32,
        mask: u32,
        values: &'static [u32],
        errno: i32,
    },
    /// The argument is none of these.
    Unless {
        argument: u32,
        values: &'static [u32],
        errno: i32,
    },
}
use When::{Always, Any, Unless};

/// For the calling process itself.
const ITSELF: When = Unless { argument: 0, values: &[0], errno: EPERM };
const NAMESPACES: &[u32] = &[
    libc::CLONE_NEWNS as u32,
    libc::CLONE_NEWCGROUP as u32,
    libc::CLONE_NEWUTS as u32,
    libc::CLONE_NEWIPC as u32,
    libc::CLONE_NEWUSER as u32,
    libc::CLONE_NEWPID as u32,
    libc::CLONE_NEWNET as u32,
];
const INET: &[u32] = &[libc::AF_INET as u32, libc::AF_INET6 as u32];
const SOCKET_TYPE: u32 = 0xf;

/// What network a filter leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// Not even a TCP socket: where neither Landlock nor a namespace keeps it from connecting.
    NoSockets,
    /// TCP sockets, which something else keeps from connecting. They never listen: nothing else keeps others from coming in
    /// to a socket that was not bound before.
    Tcp,
    /// TCP sockets whose connects and binds somebody else answers (`notify`). What they are bound to listens already: a
    /// listen(2) does nothing, and succeeds.
    Answered,
    /// TCP, and UDP for names: for installs.
    TcpAndUdp,
}

fn table(network: Network, attributes: Attributes) -> Vec<(c_long, Vec<When>)> {
    let refused: &[c_long] = &[
        // Into other processes.
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_process_madvise,
        libc::SYS_process_mrelease,
        libc::SYS_kcmp,
        libc::SYS_pidfd_getfd,
        libc::SYS_move_pages,
        libc::SYS_migrate_pages,
        // Parts of the kernel with a long list of faults, and no use here.
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_bpf,
        libc::SYS_add_key,
        libc::SYS_request_key,
        libc::SYS_keyctl,
        libc::SYS_io_uring_setup,
        libc::SYS_io_uring_enter,
        libc::SYS_io_uring_register,
        libc::SYS_fanotify_init,
        libc::SYS_memfd_secret,
        libc::SYS_lookup_dcookie,
        // System V IPC and POSIX queues: shared by all of a machine, beyond files and limits.
        libc::SYS_shmget,
        libc::SYS_shmat,
        libc::SYS_shmctl,
        libc::SYS_shmdt,
        libc::SYS_semget,
        libc::SYS_semop,
        libc::SYS_semtimedop,
        libc::SYS_semctl,
        libc::SYS_msgget,
        libc::SYS_msgsnd,
        libc::SYS_msgrcv,
        libc::SYS_msgctl,
        libc::SYS_mq_open,
        libc::SYS_mq_unlink,
        libc::SYS_mq_timedsend,
        libc::SYS_mq_timedreceive,
        libc::SYS_mq_notify,
        libc::SYS_mq_getsetattr,
        // Namespaces, mounts, roots: how a process gets another view of the machine.
        libc::SYS_unshare,
        libc::SYS_setns,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_move_mount,
        libc::SYS_open_tree,
        libc::SYS_mount_setattr,
        libc::SYS_name_to_handle_at,
        libc::SYS_open_by_handle_at,
        // The machine itself.
        libc::SYS_reboot,
        libc::SYS_swapon,
        libc::SYS_swapoff,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_delete_module,
        libc::SYS_kexec_load,
        libc::SYS_kexec_file_load,
        libc::SYS_acct,
        libc::SYS_quotactl,
        libc::SYS_quotactl_fd,
        libc::SYS_settimeofday,
        libc::SYS_clock_settime,
        libc::SYS_clock_adjtime,
        libc::SYS_adjtimex,
        libc::SYS_sethostname,
        libc::SYS_setdomainname,
        libc::SYS_syslog,
        libc::SYS_vhangup,
        libc::SYS_nfsservctl,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_iopl,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_ioperm,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_modify_ldt,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_uselib,
    ];
    let mut table: Vec<(c_long, Vec<When>)> =
        refused.iter().map(|number| (*number, vec![Always(EPERM)])).collect();
    table.extend([
        // Another execution domain is another ABI; asking which one it is stays.
        (libc::SYS_personality, vec![Unless { argument: 0, values: &[0, u32::MAX], errno: EPERM }]),
        // Limits and priorities of others: of the worker, where sessions have no uid of their own.
        (libc::SYS_prlimit64, vec![ITSELF]),
        (libc::SYS_sched_setattr, vec![ITSELF]),
        (libc::SYS_sched_setscheduler, vec![ITSELF]),
        (libc::SYS_sched_setparam, vec![ITSELF]),
        (libc::SYS_sched_setaffinity, vec![ITSELF]),
        (libc::SYS_setpriority, vec![ITSELF, Unless { argument: 1, values: &[0], errno: EPERM }]),
        (
            libc::SYS_ioprio_set,
            // IOPRIO_WHO_PROCESS
            vec![
                Unless { argument: 0, values: &[1], errno: EPERM },
                Unless { argument: 1, values: &[0], errno: EPERM },
            ],
        ),
        // Its flags lie in memory, where a filter does not see them; libraries fall back to clone.
        (libc::SYS_clone3, vec![Always(ENOSYS)]),
        (libc::SYS_clone, namespaces()),
        // A datagram socket of this family could be sent to any named socket on the machine.
        (
            libc::SYS_socketpair,
            vec![Any { argument: 1, mask: SOCKET_TYPE, values: &[libc::SOCK_DGRAM as u32], errno: EPERM }],
        ),
        (libc::SYS_socket, sockets(network)),
        (libc::SYS_ioctl, ioctls(attributes)),
    ]);
    match network {
        Network::Tcp => table.push((libc::SYS_listen, vec![Always(EPERM)])),
        Network::Answered => table.push((libc::SYS_listen, vec![Always(0)])),
        Network::NoSockets | Network::TcpAndUdp => {}
    }
    if attributes != Attributes::ByOwner {
        table.extend(DISOWNED.map(|number| (number, vec![Always(ENOSYS)])));
        // What others make in their directories would be told by name.
        table.push((libc::SYS_inotify_add_watch, vec![Always(EPERM)]));
    }
    if attributes == Attributes::Fixed {
        table.extend(CALLS.iter().map(|(number, ..)| (*number, vec![Always(EPERM)])));
    }
    table
}

fn ioctls(attributes: Attributes) -> Vec<When> {
    // Typing into the terminal that somebody else reads.
    const TERMINALS: &[u32] = &[libc::TIOCSTI as u32, libc::TIOCLINUX as u32];
    // Of files, of XFS and those who took after it, versions, of btrfs: the owner of a file that is open for reading may
    // change much of it by these. As if the file system had none.
    const OF_FILES: &[u32] = &[0x6600, 0x5800, 0x7600, 0x9400];
    let mut whens = vec![Any { argument: 1, mask: u32::MAX, values: TERMINALS, errno: EPERM }];
    if attributes != Attributes::ByOwner {
        whens.push(Any { argument: 1, mask: 0xff00, values: OF_FILES, errno: ENOTTY });
    }
    whens
}

fn namespaces() -> Vec<When> {
    NAMESPACES
        .iter()
        .map(|flag| Any { argument: 0, mask: *flag, values: std::slice::from_ref(flag), errno: EPERM })
        .collect()
}

fn sockets(network: Network) -> Vec<When> {
    const DATAGRAM: u32 = libc::SOCK_DGRAM as u32;
    // RAW, RDM, SEQPACKET, DCCP, PACKET
    const OTHER: &[u32] = &[3, 4, 5, 6, 10];
    let types = |values| Any { argument: 1, mask: SOCKET_TYPE, values, errno: EPERM };
    let families = Unless { argument: 0, values: INET, errno: EAFNOSUPPORT };
    match network {
        Network::NoSockets => vec![Always(EAFNOSUPPORT)],
        Network::Tcp | Network::Answered => vec![
            families,
            types(OTHER),
            types(&[DATAGRAM]),
            // Other protocols over a stream socket (MPTCP, SCTP) are none of Landlock's.
            Unless { argument: 2, values: &[0, libc::IPPROTO_TCP as u32], errno: EPERM },
        ],
        Network::TcpAndUdp => vec![
            families,
            types(OTHER),
            Unless {
                argument: 2,
                values: &[0, libc::IPPROTO_TCP as u32, libc::IPPROTO_UDP as u32],
                errno: EPERM,
            },
        ],
    }
}

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;
const ALLOW: u32 = 0x7fff_0000;
const KILL: u32 = 0x8000_0000;
const ERRNO: u32 = 0x0005_0000;
const NUMBER_AT: u32 = 0;
const ARCHITECTURE_AT: u32 = 4;
/// The low half of an argument; these machines are little-endian.
const fn argument_at(argument: u32) -> u32 {
    16 + 8 * argument
}

/// A filter as the kernel takes it: struct sock_filter, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program(pub Vec<u8>);

/// The filter of a session.
pub fn program(network: Network, attributes: Attributes) -> Program {
    let mut code = Vec::new();
    let mut emit = |op: u16, then: u8, otherwise: u8, value: u32| {
        code.extend(op.to_ne_bytes());
        code.extend([then, otherwise]);
        code.extend(value.to_ne_bytes());
    };
    emit(LOAD, 0, 0, ARCHITECTURE_AT);
    emit(IF_EQUAL, 1, 0, ARCHITECTURE);
    emit(RETURN, 0, 0, KILL);
    emit(LOAD, 0, 0, NUMBER_AT);
    if cfg!(target_arch = "x86_64") {
        // x32: the same architecture with other numbers.
        emit(IF_AT_LEAST, 0, 1, 0x4000_0000);
        emit(RETURN, 0, 0, KILL);
    }
    if attributes != Attributes::ByOwner {
        emit(IF_AT_LEAST, 0, 1, UNKNOWN_FROM);
        emit(RETURN, 0, 0, ERRNO | ENOSYS as u32);
    }
    for (number, whens) in table(network, attributes) {
        let body: Vec<_> = whens.iter().flat_map(instructions).chain([(RETURN, 0, 0, ALLOW)]).collect();
        emit(IF_EQUAL, 0, body.len() as u8, number as u32);
        for (op, then, otherwise, value) in body {
            emit(op, then, otherwise, value);
        }
    }
    emit(RETURN, 0, 0, ALLOW);
    Program(code)
}

fn instructions(when: &When) -> Vec<(u16, u8, u8, u32)> {
    let refuse = |errno: i32| (RETURN, 0, 0, ERRNO | errno as u32);
    match when {
        Always(errno) => vec![refuse(*errno)],
        Any { argument, mask, values, errno } => {
            let mut code = vec![(LOAD, 0, 0, argument_at(*argument)), (AND, 0, 0, *mask)];
            for value in *values {
                code.push((IF_EQUAL, 0, 1, *value));
                code.push(refuse(*errno));
            }
            code
        }
        Unless { argument, values, errno } => {
            let mut code = vec![(LOAD, 0, 0, argument_at(*argument))];
            for (n, value) in values.iter().enumerate() {
                // Over the other comparisons and the refusal.
                code.push((IF_EQUAL, (values.len() - n) as u8, 0, *value));
            }
            code.push(refuse(*errno));
            code
        }
    }
}

/// Whether the kernel has filters, and this process may set them.
pub fn is_there() -> bool {
    const GET_ACTION_AVAIL: u32 = 2;
    let action = ERRNO;
    // SAFETY: reads one u32.
    unsafe { libc::syscall(libc::SYS_seccomp, GET_ACTION_AVAIL, 0, &raw const action) == 0 }
}

/// Sets a filter for the calling thread, which must have given up new privileges, and all that it starts.
pub fn set(program: &Program) -> io::Result<()> {
    // The kernel copies it; u64 keeps the alignment of struct sock_filter.
    let words: Vec<u64> = program
        .0
        .chunks_exact(8)
        .map(|bytes| {
            let mut word = [0; 8];
            word.copy_from_slice(bytes);
            u64::from_ne_bytes(word)
        })
        .collect();
    let filter =
        libc::sock_fprog { len: words.len() as u16, filter: words.as_ptr() as *mut libc::sock_filter };
    // SAFETY: `filter` points at `len` instructions that outlive the call.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const filter) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the filter says to a call: a small machine for the five instructions there are.
    fn verdict(network: Network, architecture: u32, number: u32, arguments: [u32; 3]) -> u32 {
        run(&program(network, Attributes::ByOwner).0, architecture, number, arguments)
    }
    fn run(code: &[u8], architecture: u32, number: u32, arguments: [u32; 3]) -> u32 {
        let (mut at, mut held) = (0usize, 0u32);
        loop {
            let op = u16::from_ne_bytes([code[at], code[at + 1]]);
            let (then, otherwise) = (code[at + 2] as usize, code[at + 3] as usize);
            let value = u32::from_ne_bytes([code[at + 4], code[at + 5], code[at + 6], code[at + 7]]);
            let mut jump = 0;
            match op {
                LOAD => {
                    held = match value {
                        NUMBER_AT => number,
                        ARCHITECTURE_AT => architecture,
                        offset => arguments[(offset as usize - 16) / 8],
                    }
                }
                AND => held &= value,
                IF_EQUAL => jump = if held == value { then } else { otherwise },
                IF_AT_LEAST => jump = if held >= value { then } else { otherwise },
                RETURN => return value,
                other => panic!("unknown instruction {other}"),
            }
            at += 8 * (1 + jump);
        }
    }
    fn call(number: c_long, arguments: [u32; 3]) -> u32 {
        verdict(Network::Tcp, ARCHITECTURE, number as u32, arguments)
    }
    const NO: u32 = ERRNO | EPERM as u32;

    #[test]
    fn a_session_may_do_to_itself_what_it_may_not_do_to_others() {
        assert_eq!(call(libc::SYS_prlimit64, [0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_prlimit64, [1, 0, 0]), NO);
        assert_eq!(call(libc::SYS_setpriority, [0, 0, 5]), ALLOW);
        assert_eq!(call(libc::SYS_setpriority, [2, 0, 5]), NO);
        assert_eq!(call(libc::SYS_setpriority, [0, 77, 5]), NO);
        assert_eq!(call(libc::SYS_ioprio_set, [1, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_ioprio_set, [1, 7, 0]), NO);
        assert_eq!(call(libc::SYS_read, [0, 0, 0]), ALLOW);
        assert_eq!(call(libc::SYS_ptrace, [0, 0, 0]), NO);
    }

    #[test]
    fn where_uids_are_shared_attributes_are_asked_for_or_refused() {
        let said = |attributes, number: c_long, arguments| {
            run(&program(Network::Tcp, attributes).0, ARCHITECTURE, number as u32, arguments)
        };
        for (number, ..) in CALLS {
            assert_eq!(said(Attributes::ByOwner, *number, [0; 3]), ALLOW);
            assert_eq!(said(Attributes::ByHost, *number, [0; 3]), ALLOW, "the other filter asks");
            assert_eq!(said(Attributes::Fixed, *number, [0; 3]), NO);
        }
        let flags = [0, 0x4008_6602, 0];
        assert_eq!(said(Attributes::ByOwner, libc::SYS_ioctl, flags), ALLOW);
        for attributes in [Attributes::ByHost, Attributes::Fixed] {
            assert_eq!(said(attributes, libc::SYS_ioctl, flags), ERRNO | ENOTTY as u32);
            assert_eq!(said(attributes, libc::SYS_ioctl, [0, libc::FIONBIO as u32, 0]), ALLOW);
            assert_eq!(said(attributes, libc::SYS_inotify_add_watch, [0; 3]), NO);
            for number in DISOWNED.into_iter().chain([UNKNOWN_FROM.into(), 1000]) {
                assert_eq!(said(attributes, number, [0; 3]), ERRNO | ENOSYS as u32);
            }
        }
    }

    #[test]
    fn sockets_are_tcp_or_none() {
        let socket = |network, arguments| verdict(network, ARCHITECTURE, libc::SYS_socket as u32, arguments);
        let flags = libc::SOCK_CLOEXEC as u32 | libc::SOCK_NONBLOCK as u32;
        for family in [2, 10] {
            assert_eq!(socket(Network::Tcp, [family, 1 | flags, 0]), ALLOW);
            assert_eq!(socket(Network::Tcp, [family, 1, 262]), NO, "MPTCP");
            assert_eq!(socket(Network::Tcp, [family, 2 | flags, 0]), NO, "UDP");
            assert_eq!(socket(Network::Tcp, [family, 3, 1]), NO, "raw");
            assert_eq!(socket(Network::TcpAndUdp, [family, 2 | flags, 0]), ALLOW);
            assert_eq!(socket(Network::TcpAndUdp, [family, 3, 1]), NO);
            assert_ne!(socket(Network::NoSockets, [family, 1, 0]), ALLOW);
        }
        for family in [1, 16, 17, 38, 40] {
            for network in [Network::Tcp, Network::TcpAndUdp, Network::NoSockets] {
                assert_eq!(socket(network, [family, 1, 0]), ERRNO | EAFNOSUPPORT as u32, "{family}");
            }
        }
        assert_eq!(call(libc::SYS_socketpair, [1, 1 | flags, 0]), ALLOW);
        assert_eq!(call(libc::SYS_socketpair, [1, 2 | flags, 0]), NO);
    }

    #[test]
    fn a_listen_does_nothing_where_binds_are_answered_and_is_refused_elsewhere() {
        let listen = |network| verdict(network, ARCHITECTURE, libc::SYS_listen as u32, [3, 1, 0]);
        assert_eq!(listen(Network::Tcp), NO);
        assert_eq!(listen(Network::Answered), ERRNO);
        let socket = |kind| verdict(Network::Answered, ARCHITECTURE, libc::SYS_socket as u32, [2, kind, 0]);
        assert_eq!((socket(1), socket(2)), (ALLOW, NO));
    }

    #[test]
    fn a_thread_is_made_and_a_namespace_is_not() {
        let thread = 0x003d_0f00;
        assert_eq!(call(libc::SYS_clone, [thread, 0, 0]), ALLOW);
        for flag in NAMESPACES {
            assert_eq!(call(libc::SYS_clone, [flag | 17, 0, 0]), NO, "{flag:x}");
        }
        assert_eq!(call(libc::SYS_clone3, [0, 0, 0]), ERRNO | ENOSYS as u32);
        assert_eq!(call(libc::SYS_ioctl, [0, libc::TIOCSTI as u32, 0]), NO);
        assert_eq!(call(libc::SYS_ioctl, [0, libc::FIONBIO as u32, 0]), ALLOW);
    }

    #[test]
    fn a_foreign_abi_kills() {
        assert_eq!(verdict(Network::Tcp, 0x4000_0003, 1, [0; 3]), KILL);
        if cfg!(target_arch = "x86_64") {
            assert_eq!(verdict(Network::Tcp, ARCHITECTURE, 0x4000_0001, [0; 3]), KILL);
        }
    }
}
