//! The limits on a LAN's connections.

use crate::lan::fabric;

/// The most connections to VM ports, including those that haven't attached yet: many more than
/// there can be VMs. Beyond it a new connection evicts the oldest that hasn't attached, so that
/// silent connections keep no VM out.
const VMS_MAX: usize = 256;

const _: () = assert!(VMS_MAX > fabric::VMS_MAX, "each VM can connect, also while its former connection lasts");

/// The most connections to QEMU ports, which count as attached from the start.
const QEMUS_MAX: usize = 64;
/// The most TCP connections through forwards at a time, and the most UDP flows.
const CLIENTS_MAX: ClientLimits = ClientLimits { total: 512, of_forward: 256, of_address: 192 };

/// The most TCP connections, or UDP flows, of clients at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::lan) struct ClientLimits {
    /// Through all forwards.
    pub(in crate::lan) total: usize,
    /// Through one forward.
    pub(in crate::lan) of_forward: usize,
    /// Of one client address.
    pub(in crate::lan) of_address: usize,
}

/// The most connections of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    pub(in crate::lan) vms: usize,
    pub(in crate::lan) qemus: usize,
    pub(in crate::lan) clients: ClientLimits,
    /// Flows take no descriptors.
    pub(in crate::lan) flows: ClientLimits,
}

impl ConnectionLimits {
    /// All connections together, where nothing limits them further.
    pub const ALL: usize = VMS_MAX + QEMUS_MAX + CLIENTS_MAX.total;

    /// The limits of a LAN that may have `connections` in all. Each kind has its share, so that
    /// none takes the descriptors of another.
    #[must_use]
    pub fn within(connections: usize) -> Self {
        let connections = connections.min(Self::ALL);
        let part = |most: usize| (most * connections / Self::ALL).max(1);
        Self {
            vms: part(VMS_MAX),
            qemus: part(QEMUS_MAX),
            clients: ClientLimits {
                total: part(CLIENTS_MAX.total),
                of_forward: part(CLIENTS_MAX.of_forward),
                of_address: part(CLIENTS_MAX.of_address),
            },
            flows: CLIENTS_MAX,
        }
    }
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self::within(Self::ALL)
    }
}

#[cfg(test)]
mod tests {
    use super::{CLIENTS_MAX, ConnectionLimits};

    #[test]
    fn few_descriptors_are_shared_out_and_all_kinds_together_stay_within_them() {
        let whole = ConnectionLimits::default();
        assert_eq!((whole.vms, whole.qemus, whole.clients), (256, 64, CLIENTS_MAX));
        for connections in [20, 32, 100, 500, ConnectionLimits::ALL, usize::MAX] {
            let limits = ConnectionLimits::within(connections);
            assert!(limits.vms + limits.qemus + limits.clients.total <= connections, "{connections}: {limits:?}");
            assert!(limits.vms >= 4 && limits.clients.of_address < limits.clients.of_forward, "{limits:?}");
        }
    }
}
