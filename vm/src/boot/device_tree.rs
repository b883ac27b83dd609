//! The device tree: the board's description for the guest, part of the initial state.
//!
//! Nodes and properties are those of QEMU's `virt` board, as far as the devices exist here.

use crate::bus::{CLINT, FINISHER, PLIC, RTC, RTC_IRQ, Region, Slots, UART, UART_IRQ};
use crate::config::{MachineConfig, TIMEBASE_HZ};
use crate::ram::RAM_BASE;
use alloc::borrow::ToOwned;
use alloc::format;
use alloc::vec::Vec;
use core::ops::Range;
use vm_fdt::{FdtWriter, FdtWriterResult};

const PHANDLE_HART_INTERRUPTS: u32 = 1;
const PHANDLE_PLIC: u32 = 2;
const PHANDLE_FINISHER: u32 = 3;

/// (hart interrupt controller, interrupt) of the CLINT: machine software and machine timer.
const CLINT_INTERRUPTS: [u32; 4] = [PHANDLE_HART_INTERRUPTS, 3, PHANDLE_HART_INTERRUPTS, 7];

/// (hart interrupt controller, interrupt) of each PLIC context: machine and supervisor external.
const PLIC_CONTEXTS: [u32; 4] = [PHANDLE_HART_INTERRUPTS, 11, PHANDLE_HART_INTERRUPTS, 9];
const PLIC_SOURCES: u32 = 95;

/// `clock-frequency` of the UART, from which a driver computes the divisor.
const UART_CLOCK_HZ: u32 = 3_686_400;

/// Line settings that `/chosen/stdout-path` names. The line is infinitely fast whatever the
/// settings.
const UART_OPTIONS: &str = "115200n8";

/// `riscv,isa`: the extensions of the hart.
const ISA: &str = "rv64imafdc_zicntr_zicsr_zifencei_zba_zbb_zbs_zkr_sstc";
const ISA_BASE: &str = "rv64i";
const ISA_EXTENSIONS: [&str; 14] =
    ["i", "m", "a", "f", "d", "c", "zicntr", "zicsr", "zifencei", "zba", "zbb", "zbs", "zkr", "sstc"];
const MMU: &str = "riscv,sv39";

/// The part of the device tree that depends on the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Contents {
    /// Addresses of the initrd in RAM.
    pub(crate) initrd: Option<Range<u64>>,
}

/// The flattened device tree of a machine with this configuration and an image with these contents.
/// Its length doesn't depend on where the initrd lies.
pub(crate) fn build(config: &MachineConfig, contents: &Contents) -> FdtWriterResult<Vec<u8>> {
    let mut fdt = FdtWriter::new()?;
    let root = fdt.begin_node("")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("compatible", "riscv-virtio")?;
    fdt.property_string("model", "riscv-virtio,ftvm")?;
    chosen(&mut fdt, config, contents)?;
    let memory = fdt.begin_node(&format!("memory@{RAM_BASE:x}"))?;
    fdt.property_string("device_type", "memory")?;
    fdt.property_array_u64("reg", &[RAM_BASE, config.ram_bytes])?;
    fdt.end_node(memory)?;
    cpus(&mut fdt)?;
    soc(&mut fdt, config)?;
    fdt.end_node(root)?;
    fdt.finish()
}

fn chosen(fdt: &mut FdtWriter, config: &MachineConfig, contents: &Contents) -> FdtWriterResult<()> {
    let chosen = fdt.begin_node("chosen")?;
    fdt.property_string("bootargs", &config.bootargs)?;
    fdt.property_string("stdout-path", &format!("/soc/serial@{:x}:{UART_OPTIONS}", UART.base))?;
    fdt.property("rng-seed", &config.rng_seed)?;
    if let Some(initrd) = &contents.initrd {
        fdt.property_u64("linux,initrd-start", initrd.start)?;
        fdt.property_u64("linux,initrd-end", initrd.end)?;
    }
    fdt.end_node(chosen)
}

fn cpus(fdt: &mut FdtWriter) -> FdtWriterResult<()> {
    let cpus = fdt.begin_node("cpus")?;
    fdt.property_u32("#address-cells", 1)?;
    fdt.property_u32("#size-cells", 0)?;
    let timebase = u32::try_from(TIMEBASE_HZ).expect("the timebase is 10 MHz");
    fdt.property_u32("timebase-frequency", timebase)?;
    let cpu = fdt.begin_node("cpu@0")?;
    fdt.property_string("device_type", "cpu")?;
    fdt.property_u32("reg", 0)?;
    fdt.property_string("status", "okay")?;
    fdt.property_string("compatible", "riscv")?;
    fdt.property_string("riscv,isa", ISA)?;
    fdt.property_string("riscv,isa-base", ISA_BASE)?;
    fdt.property_string_list("riscv,isa-extensions", ISA_EXTENSIONS.map(ToOwned::to_owned).to_vec())?;
    fdt.property_string("mmu-type", MMU)?;
    let interrupts = fdt.begin_node("interrupt-controller")?;
    fdt.property_u32("#interrupt-cells", 1)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_string("compatible", "riscv,cpu-intc")?;
    fdt.property_phandle(PHANDLE_HART_INTERRUPTS)?;
    fdt.end_node(interrupts)?;
    fdt.end_node(cpu)?;
    fdt.end_node(cpus)
}

fn soc(fdt: &mut FdtWriter, config: &MachineConfig) -> FdtWriterResult<()> {
    let soc = fdt.begin_node("soc")?;
    fdt.property_u32("#address-cells", 2)?;
    fdt.property_u32("#size-cells", 2)?;
    fdt.property_string("compatible", "simple-bus")?;
    fdt.property_null("ranges")?;

    let plic = begin_device(fdt, "plic", PLIC, &["sifive,plic-1.0.0", "riscv,plic0"])?;
    fdt.property_u32("#interrupt-cells", 1)?;
    fdt.property_u32("#address-cells", 0)?;
    fdt.property_null("interrupt-controller")?;
    fdt.property_array_u32("interrupts-extended", &PLIC_CONTEXTS)?;
    fdt.property_u32("riscv,ndev", PLIC_SOURCES)?;
    fdt.property_phandle(PHANDLE_PLIC)?;
    fdt.end_node(plic)?;

    let clint = begin_device(fdt, "clint", CLINT, &["sifive,clint0", "riscv,clint0"])?;
    fdt.property_array_u32("interrupts-extended", &CLINT_INTERRUPTS)?;
    fdt.end_node(clint)?;

    let uart = begin_device(fdt, "serial", UART, &["ns16550a"])?;
    fdt.property_u32("clock-frequency", UART_CLOCK_HZ)?;
    interrupt(fdt, UART_IRQ)?;
    fdt.end_node(uart)?;

    let rtc = begin_device(fdt, "rtc", RTC, &["google,goldfish-rtc"])?;
    interrupt(fdt, RTC_IRQ)?;
    fdt.end_node(rtc)?;

    let Slots { net, disk, rng } = Slots::of(config.boot, config.disk_bytes > 0);
    for slot in [Some(net), disk, Some(rng)].into_iter().flatten() {
        let device = begin_device(fdt, "virtio_mmio", slot.region(), &["virtio,mmio"])?;
        interrupt(fdt, slot.interrupt())?;
        fdt.end_node(device)?;
    }

    let finisher = begin_device(fdt, "test", FINISHER, &["sifive,test1", "sifive,test0", "syscon"])?;
    fdt.property_phandle(PHANDLE_FINISHER)?;
    fdt.end_node(finisher)?;
    fdt.end_node(soc)?;

    finisher_action(fdt, "poweroff", 0x5555)?;
    finisher_action(fdt, "reboot", 0x7777)
}

fn begin_device(
    fdt: &mut FdtWriter,
    name: &str,
    region: Region,
    compatible: &[&str],
) -> FdtWriterResult<vm_fdt::FdtWriterNode> {
    let node = fdt.begin_node(&format!("{name}@{:x}", region.base))?;
    fdt.property_string_list("compatible", compatible.iter().map(|name| (*name).to_owned()).collect())?;
    fdt.property_array_u64("reg", &[region.base, region.bytes])?;
    Ok(node)
}

fn interrupt(fdt: &mut FdtWriter, source: u32) -> FdtWriterResult<()> {
    fdt.property_u32("interrupt-parent", PHANDLE_PLIC)?;
    fdt.property_u32("interrupts", source)
}

/// A node with which an operating system without a driver for the finisher powers off or reboots:
/// it writes `value` to the finisher's register.
fn finisher_action(fdt: &mut FdtWriter, action: &str, value: u32) -> FdtWriterResult<()> {
    let node = fdt.begin_node(action)?;
    fdt.property_string("compatible", &format!("syscon-{action}"))?;
    fdt.property_u32("regmap", PHANDLE_FINISHER)?;
    fdt.property_u32("offset", 0)?;
    fdt.property_u32("value", value)?;
    fdt.end_node(node)
}

#[cfg(test)]
mod tests {
    use super::{Contents, MachineConfig, build};
    use alloc::vec::Vec;

    const NOTHING: Contents = Contents { initrd: None };

    fn tree(config: &MachineConfig, contents: &Contents) -> Vec<u8> {
        build(config, contents).unwrap()
    }

    fn with_disk(config: &MachineConfig) -> MachineConfig {
        MachineConfig { disk_bytes: 4096, ..config.clone() }
    }

    /// `true` if `tree` contains `bytes`: enough to look for a name or a value.
    fn has(tree: &[u8], bytes: &[u8]) -> bool {
        tree.windows(bytes.len()).any(|window| window == bytes)
    }

    #[test]
    fn is_a_function_of_the_configuration_and_the_contents() {
        let config = MachineConfig::default();
        let plain = tree(&config, &NOTHING);
        assert_eq!(plain[..4], 0xd00d_feed_u32.to_be_bytes());
        assert_eq!(plain, tree(&config, &NOTHING));
        assert_ne!(plain, tree(&with_disk(&config), &NOTHING));
        let other = MachineConfig { rng_seed: [1; 32], ..config };
        assert_ne!(plain, tree(&other, &NOTHING));
    }

    #[test]
    fn bootargs_with_nul_are_refused() {
        assert!(build(&MachineConfig { bootargs: "a\0b".into(), ..MachineConfig::default() }, &NOTHING).is_err());
    }

    #[test]
    fn what_isnt_there_isnt_described_and_addresses_dont_change_the_length() {
        let config = MachineConfig::default();
        let plain = tree(&config, &NOTHING);
        assert!(!has(&plain, b"linux,initrd-start") && !has(&plain, b"virtio_mmio@10002000"));
        assert!(has(&tree(&with_disk(&config), &NOTHING), b"virtio_mmio@10002000"));
        let [placeholder, placed] =
            [0..0, 0x8700_0000..0x8712_3456].map(|initrd| tree(&config, &Contents { initrd: Some(initrd) }));
        assert_eq!(placeholder.len(), placed.len());
        for word in [0x8700_0000_u64, 0x8712_3456] {
            assert!(has(&placed, &word.to_be_bytes()) && !has(&placeholder, &word.to_be_bytes()), "{word:#x}");
        }
    }
}
