//! How many connections a LAN has at once.

/// The most connections to VM ports, those included that have not attached yet: many more than there can be VMs. One more
/// takes the place of the oldest that hasn't attached, so that nobody is kept out by connections that say nothing.
const VMS_MAX: usize = 256;
/// The most connections to QEMU ports, which attach by being there.
const QEMUS_MAX: usize = 64;
/// The most TCP connections through all forwards at a time.
const CLIENTS_MAX: usize = 512;
/// The most TCP connections through one forward.
const CLIENTS_OF_FORWARD_MAX: usize = 256;
/// The most TCP connections of one client address.
const CLIENTS_OF_ADDRESS_MAX: usize = 192;

/// The most connections of each kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimits {
    pub(super) vms: usize,
    pub(super) qemus: usize,
    pub(super) clients: usize,
    pub(super) clients_of_forward: usize,
    pub(super) clients_of_address: usize,
}

impl ConnectionLimits {
    /// All connections together, where nothing limits them further.
    pub const ALL: usize = VMS_MAX + QEMUS_MAX + CLIENTS_MAX;

    /// The limits of a LAN that may have so many connections in all: each kind has its part, so that none takes the descriptors of
    /// another.
    #[must_use]
    pub fn within(connections: usize) -> Self {
        let connections = connections.min(Self::ALL);
        let part = |most: usize| (most * connections / Self::ALL).max(1);
        Self {
            vms: part(VMS_MAX),
            qemus: part(QEMUS_MAX),
            clients: part(CLIENTS_MAX),
            clients_of_forward: part(CLIENTS_OF_FORWARD_MAX),
            clients_of_address: part(CLIENTS_OF_ADDRESS_MAX),
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
    use super::ConnectionLimits;

    #[test]
    fn few_descriptors_are_shared_out_and_all_kinds_together_stay_within_them() {
        let whole = ConnectionLimits::default();
        assert_eq!((whole.vms, whole.qemus, whole.clients), (256, 64, 512));
        for connections in [20, 32, 100, 500, ConnectionLimits::ALL, usize::MAX] {
            let limits = ConnectionLimits::within(connections);
            assert!(limits.vms + limits.qemus + limits.clients <= connections, "{connections}: {limits:?}");
            assert!(limits.vms >= 4 && limits.clients_of_address < limits.clients_of_forward, "{limits:?}");
        }
    }
}
