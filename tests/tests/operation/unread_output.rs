//! Unread output: a full pipe on standard output or standard error stops no guest, no failover and
//! no signal.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use hypervisor::program::cli::exit;
use hypervisor::program::site::cluster::PATIENCE;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;
use tempfile::TempDir;
use tests::programs;
use tests::stage::{Stage, wait_until};

/// Steps after which the chatty guest has written some megabytes.
const LIMIT: &str = "6000000";

/// A full pipe, and its unread end.
fn full_pipe() -> (PipeReader, PipeWriter) {
    let (reader, mut writer) = io::pipe().unwrap();
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
    while writer.write(&[b'x'; 4096]).is_ok() {}
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::empty())).unwrap();
    (reader, writer)
}

/// A process that is killed with its test.
struct Started(Child);

impl Started {
    fn new(program: &str, arguments: &[&str], stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Self {
        let mut command: Command = programs!().command(program);
        Self(command.args(arguments).stdin(Stdio::null()).stdout(stdout).stderr(stderr).spawn().unwrap())
    }

    fn terminate(&self) {
        kill(Pid::from_raw(i32::try_from(self.0.id()).unwrap()), Signal::SIGTERM).unwrap();
    }

    #[track_caller]
    fn ends_with(&mut self, code: u8) {
        let mut status = None;
        wait_until("the end", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.code()), Some(code.into()), "{status:?}");
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Waits for the guest's echo, on new connections.
#[track_caller]
fn echoes(service: SocketAddr) {
    wait_until("an echo", || {
        let echo = || -> io::Result<bool> {
            let mut client = TcpStream::connect_timeout(&service, PATIENCE)?;
            client.set_read_timeout(Some(Duration::from_secs(5)))?;
            client.write_all(b"hi\n")?;
            let mut reply = [0; 3];
            client.read_exact(&mut reply)?;
            Ok(reply == *b"hi\n")
        };
        echo().unwrap_or(false)
    });
}

fn free_port() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// A kernel that writes to its console for ever, as fast as it can.
fn chatty_guest(directory: &Path) -> String {
    const CODE: [u32; 4] = [
        0x1000_02b7, // lui t0, 0x10000: the UART
        0x0780_0313, // li t1, 'x'
        0x0062_8023, // sb t1, 0(t0)
        0xffdf_f06f, // j -4
    ];
    let code: Vec<u8> = CODE.iter().flat_map(|word| word.to_le_bytes()).collect();
    let (entry, size) = (0x8020_0000_u64, code.len() as u64);
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    for half in [2_u16, 243] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes());
    for word in [entry, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend([1_u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    for word in [120, entry, entry, size, size, 4] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    let path = directory.join("chatty");
    fs::write(&path, elf).unwrap();
    path.to_str().unwrap().into()
}

#[test]
fn a_primary_with_unread_output_serves_its_guest_and_obeys_signals() {
    let stage = Stage::new(programs!());
    let site = stage.site.options();
    for (vm, is_json) in [("json", true), ("people", false)] {
        let mut options: Vec<_> = site.iter().map(String::as_str).chain(["--vm", vm, "--unprotected"]).collect();
        // More lines of logs than the program buffers.
        let (_reader, pipe) = full_pipe();
        let mut primary = if is_json {
            options.push("--json");
            Started::new("ft-primary", &options, pipe, Stdio::null())
        } else {
            Started::new("ft-primary", &options, Stdio::null(), pipe)
        };
        echoes(stage.site.service);
        primary.terminate();
        primary.ends_with(exit::OK);
    }
}

#[test]
fn a_lan_and_an_arbiter_with_unread_output_keep_working() {
    let directory = TempDir::new().unwrap();
    let [lan, arbiter, service] = [(); 3].map(|()| free_port());
    let forward = format!("{service}=10.0.2.15:7");
    let claims = directory.path().join("claims");
    let (_readers, pipes): (Vec<_>, Vec<_>) = (0..3).map(|_| full_pipe()).unzip();
    let [lan_pipe, arbiter_pipe, backup_pipe] = <[PipeWriter; 3]>::try_from(pipes).unwrap();
    let mut lan_process =
        Started::new("ft-lan", &["--listen", &lan, "--forward", &forward, "--json"], lan_pipe, Stdio::null());
    let arbiter_options = ["--listen", &arbiter, "--dir", claims.to_str().unwrap()];
    let mut arbiter_process = Started::new("ft-arbiter", &arbiter_options, Stdio::null(), arbiter_pipe);
    for address in [&lan, &arbiter] {
        wait_until("a listener", || TcpStream::connect(address).is_ok());
    }
    let arbiter = format!("tcp:{arbiter}");
    let common = ["--lan", &lan, "--arbiter", &arbiter, "--failure-timeout-ms", "60000"];
    let side = |listen: &str| [&common[..], &["--listen", listen]].concat().into_iter().map(String::from).collect();
    let (first, second): (Vec<String>, Vec<String>) = (side("127.0.0.1:0"), side("127.0.0.1:0"));
    let strings = |options: &[String]| options.iter().map(String::as_str).collect::<Vec<_>>().join("\n");
    let (first, second) = (strings(&first), strings(&second));
    let primary = Started::new("ft-primary", &first.lines().collect::<Vec<_>>(), Stdio::null(), Stdio::null());
    // The guest runs once the backup has joined; the backup's output is unread too.
    let mut backup = Started::new("ft-backup", &second.lines().collect::<Vec<_>>(), Stdio::null(), backup_pipe);
    let service = service.parse().unwrap();
    echoes(service);
    drop(primary);
    echoes(service);
    for process in [&mut backup, &mut lan_process, &mut arbiter_process] {
        process.terminate();
        process.ends_with(exit::OK);
    }
}

#[test]
fn a_guest_with_an_unread_console_goes_on_and_lost_output_is_reported() {
    let directory = TempDir::new().unwrap();
    let (guest, log) = (chatty_guest(directory.path()), directory.path().join("log"));
    let (_reader, pipe) = full_pipe();
    let stderr = directory.path().join("stderr");
    let options = ["--kernel", &guest, "--output", log.to_str().unwrap(), "--limit", LIMIT];
    let mut recorder = Started::new("ft-record", &options, pipe, fs::File::create(&stderr).unwrap());
    recorder.ends_with(exit::OK);
    let stderr = fs::read_to_string(stderr).unwrap();
    assert!(stderr.contains("nobody reads standard output"), "{stderr}");
    assert!(stderr.contains("bytes of console and 0 lines are lost"), "{stderr}");
}

#[test]
fn a_slow_reader_of_the_console_loses_nothing() {
    let directory = TempDir::new().unwrap();
    let (guest, log) = (chatty_guest(directory.path()), directory.path().join("log"));
    let log = log.to_str().unwrap();
    let (mut reader, pipe) = io::pipe().unwrap();
    let options = ["--kernel", &guest, "--output", log, "--limit", LIMIT];
    let mut recorder = Started::new("ft-record", &options, pipe, Stdio::null());
    let (mut read, mut buffer) = (0, [0; 32 << 10]);
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => break,
            bytes => read += bytes,
        }
        thread::sleep(Duration::from_millis(5));
    }
    recorder.ends_with(exit::OK);
    let replayed = programs!().command("ft-replay").arg(log).stderr(Stdio::null()).output().unwrap().stdout.len();
    assert!(read > 1 << 20, "the guest has written only {read} bytes");
    assert_eq!(read, replayed);
}
