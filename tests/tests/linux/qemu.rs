//! The same Linux on QEMU: checks the guest's files, and the client that the other tests use.

use std::net::TcpListener;
use std::path::Path;
use tests::linux::{LinuxGuest, PATIENCE, REDIS_READY, REDIS_SERVICE};
use tests::qemu::{Qemu, is_installed};
use tests::redis::{RedisLoad, misled_client};

#[test]
fn linux_on_qemu_serves_redis_to_the_checking_client() {
    let Some(guest) = LinuxGuest::with_redis() else { return };
    if !is_installed() {
        return;
    }
    // QEMU takes no port 0, so this uses a port that was free a moment ago.
    let service = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let network = format!("user,id=lan,hostfwd=tcp:{service}-{REDIS_SERVICE}");
    let mut arguments = vec!["-netdev", &network, "-device", "virtio-net-device,netdev=lan"];
    arguments.extend(["-m", "128M", "-initrd", guest.initrd(), "-append", guest.append()]);
    let mut qemu = Qemu::start(Path::new(guest.kernel()), &arguments).unwrap();
    assert!(qemu.wait_for_line(REDIS_READY, PATIENCE), "{:?}", qemu.console());
    let load = RedisLoad::on(service);
    load.goes_on();
    assert!(load.lost_nothing() >= 2 * RedisLoad::REPLIES);
    // A client that expects an empty redis must fail, as this one isn't.
    let misled = misled_client(service);
    assert!(!misled.is_perfect(), "{misled:?}");
    assert!(misled.error.as_ref().is_some_and(|error| error.contains("INCR counter")), "{misled:?}");
}
