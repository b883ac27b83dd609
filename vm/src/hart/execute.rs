//! Execution of instructions.

use super::alu;
use super::csr::Status;
use super::mmu::Access;
use super::{Hart, Unretired};
use crate::bus::Bus;
use crate::isa::address::{GuestPhysAddr, GuestVirtAddr};
use crate::isa::instruction::AluOp;
use crate::isa::instruction::{AmoOp, AtomicWidth, Condition, Instruction, LoadKind, Register, StoreKind};
use crate::isa::privilege::Privilege;
use crate::isa::trap::{Exception, Trap};

impl Hart {
    /// Executes `instruction`, which is `length` bytes long. The result is the next pc.
    ///
    /// If it does not retire, no register and no memory has changed.
    #[inline]
    pub(super) fn execute(&mut self, bus: &mut Bus, instruction: Instruction, length: u64) -> Result<u64, Unretired> {
        let next_pc = self.pc.wrapping_add(length);
        match instruction {
            Instruction::Lui { rd, immediate } => self.set_register(rd, sign_extended(immediate)),
            Instruction::Auipc { rd, immediate } => {
                self.set_register(rd, self.pc.wrapping_add(sign_extended(immediate)));
            }
            Instruction::Jal { rd, offset } => {
                self.set_register(rd, next_pc);
                return Ok(self.pc.wrapping_add(sign_extended(offset)));
            }
            Instruction::Jalr { rd, rs1, offset } => {
                let target = self.register(rs1).wrapping_add(sign_extended(offset)) & !1;
                self.set_register(rd, next_pc);
                return Ok(target);
            }
            Instruction::Branch { condition, rs1, rs2, offset } => {
                if holds(condition, self.register(rs1), self.register(rs2)) {
                    return Ok(self.pc.wrapping_add(sign_extended(offset)));
                }
            }
            Instruction::Load { kind, rd, rs1, offset } => {
                let value = self.load_integer(bus, kind, self.effective(rs1, offset))?;
                self.set_register(rd, value);
            }
            Instruction::Store { kind, rs1, rs2, offset } => {
                self.store_integer(bus, kind, self.effective(rs1, offset), self.register(rs2))?;
            }
            Instruction::AluImmediate { op, rd, rs1, immediate } => {
                self.set_register(rd, alu::compute(op, self.register(rs1), sign_extended(immediate)));
            }
            Instruction::AluRegister { op, rd, rs1, rs2 } => {
                self.set_register(rd, alu::compute(op, self.register(rs1), self.register(rs2)));
            }
            Instruction::LoadReserved { width, rd, rs1 } => self.load_reserved(bus, width, rd, rs1)?,
            Instruction::StoreConditional { width, rd, rs1, rs2 } => {
                self.store_conditional(bus, width, rd, rs1, rs2)?;
            }
            Instruction::Amo { op, width, rd, rs1, rs2 } => self.amo(bus, op, width, rd, rs1, rs2)?,
            Instruction::FloatLoad { format, rd, rs1, offset } => {
                self.load_float(bus, format, rd, self.effective(rs1, offset))?;
            }
            Instruction::FloatStore { format, rs1, rs2, offset } => {
                self.store_float(bus, format, self.effective(rs1, offset), rs2)?;
            }
            Instruction::Float(instruction) => self.execute_float(instruction)?,
            Instruction::Csr(instruction) => self.execute_csr(instruction)?,
            Instruction::Fence | Instruction::FenceI => {}
            Instruction::SfenceVma if !self.may(Status::TVM) => return Err(Unretired::Illegal),
            Instruction::SfenceVma => {}
            Instruction::Sret => return self.supervisor_return(),
            Instruction::Mret => return self.machine_return(),
            Instruction::Wfi if !self.may(Status::TW) => return Err(Unretired::Illegal),
            Instruction::Wfi => return Err(Unretired::WaitForInterrupt),
            Instruction::Ecall => return Err(self.environment_call()),
            Instruction::Ebreak => return Err(Trap { exception: Exception::Breakpoint, tval: self.pc }.into()),
            Instruction::Illegal => return Err(Unretired::Illegal),
        }
        Ok(next_pc)
    }

    /// `true` if a supervisor instruction is legal now that the bit `trapped` of `mstatus` (TVM,
    /// TW, TSR) makes trap in S-mode.
    pub(super) fn may(&self, trapped: u64) -> bool {
        match self.privilege {
            Privilege::User => false,
            Privilege::Supervisor => !self.csrs.status.has(trapped),
            Privilege::Machine => true,
        }
    }

    #[inline]
    pub(super) const fn effective(&self, rs1: Register, offset: i32) -> GuestVirtAddr {
        GuestVirtAddr(self.register(rs1).wrapping_add(sign_extended(offset)))
    }

    #[inline]
    fn load_integer(&mut self, bus: &mut Bus, kind: LoadKind, address: GuestVirtAddr) -> Result<u64, Unretired> {
        Ok(match kind {
            LoadKind::Byte => sign_extended(i8::from_le_bytes(self.load(bus, address)?).into()),
            LoadKind::Half => sign_extended(i16::from_le_bytes(self.load(bus, address)?).into()),
            LoadKind::Word => sign_extended(i32::from_le_bytes(self.load(bus, address)?)),
            LoadKind::Double => u64::from_le_bytes(self.load(bus, address)?),
            LoadKind::ByteUnsigned => u8::from_le_bytes(self.load(bus, address)?).into(),
            LoadKind::HalfUnsigned => u16::from_le_bytes(self.load(bus, address)?).into(),
            LoadKind::WordUnsigned => u32::from_le_bytes(self.load(bus, address)?).into(),
        })
    }

    #[inline]
    fn store_integer(
        &mut self,
        bus: &mut Bus,
        kind: StoreKind,
        address: GuestVirtAddr,
        value: u64,
    ) -> Result<(), Unretired> {
        let [b0, b1, b2, b3, ..] = value.to_le_bytes();
        match kind {
            StoreKind::Byte => self.store(bus, address, [b0]),
            StoreKind::Half => self.store(bus, address, [b0, b1]),
            StoreKind::Word => self.store(bus, address, [b0, b1, b2, b3]),
            StoreKind::Double => self.store(bus, address, value.to_le_bytes()),
        }
    }

    fn load_reserved(&mut self, bus: &mut Bus, width: AtomicWidth, rd: Register, rs1: Register) -> Result<(), Trap> {
        let address = GuestVirtAddr(self.register(rs1));
        let physical = self.atomic_address(bus, width, address, Access::Load)?;
        let value = load_atomic(bus, width, physical).ok_or(Access::Load.fault(address))?;
        self.reservation = Some(physical);
        self.set_register(rd, value);
        Ok(())
    }

    /// Stores if the reservation is valid. It ends in any case. Between LR and SC only a device can
    /// have written.
    fn store_conditional(
        &mut self,
        bus: &mut Bus,
        width: AtomicWidth,
        rd: Register,
        rs1: Register,
        rs2: Register,
    ) -> Result<(), Trap> {
        let address = GuestVirtAddr(self.register(rs1));
        let physical = self.atomic_address(bus, width, address, Access::Store)?;
        // A store that isn't possible faults even without a reservation.
        load_atomic(bus, width, physical).ok_or(Access::Store.fault(address))?;
        let succeeds = self.reservation.take() == Some(physical);
        if succeeds {
            store_atomic(bus, width, physical, self.register(rs2)).ok_or(Access::Store.fault(address))?;
            self.notice_tohost(bus, physical, width.bytes());
        }
        self.set_register(rd, u64::from(!succeeds));
        Ok(())
    }

    fn amo(
        &mut self,
        bus: &mut Bus,
        op: AmoOp,
        width: AtomicWidth,
        rd: Register,
        rs1: Register,
        rs2: Register,
    ) -> Result<(), Trap> {
        let address = GuestVirtAddr(self.register(rs1));
        let physical = self.atomic_address(bus, width, address, Access::Store)?;
        let old = load_atomic(bus, width, physical).ok_or(Access::Store.fault(address))?;
        let operand = match width {
            AtomicWidth::Word => alu::compute(AluOp::AddW, self.register(rs2), 0),
            AtomicWidth::Double => self.register(rs2),
        };
        let new = combine(op, old, operand);
        store_atomic(bus, width, physical, new).ok_or(Access::Store.fault(address))?;
        self.notice_tohost(bus, physical, width.bytes());
        self.set_register(rd, old);
        Ok(())
    }

    /// Translates the address of an atomic access, which has to be aligned.
    fn atomic_address(
        &self,
        bus: &mut Bus,
        width: AtomicWidth,
        address: GuestVirtAddr,
        access: Access,
    ) -> Result<GuestPhysAddr, Trap> {
        if address.0.is_multiple_of(width.bytes()) {
            return self.translate(bus, address, access);
        }
        let exception = match access {
            Access::Fetch | Access::Load => Exception::LoadAddressMisaligned,
            Access::Store => Exception::StoreAddressMisaligned,
        };
        Err(Trap { exception, tval: address.0 })
    }
}

/// The register value of a load of this kind from the low bytes of `value`.
#[expect(clippy::cast_possible_truncation, reason = "a narrow load takes the low bytes")]
pub(super) const fn loaded(kind: LoadKind, value: u64) -> u64 {
    match kind {
        LoadKind::Byte => sign_extended((value as u8).cast_signed() as i32),
        LoadKind::Half => sign_extended((value as u16).cast_signed() as i32),
        LoadKind::Word => sign_extended((value as u32).cast_signed()),
        LoadKind::Double => value,
        LoadKind::ByteUnsigned => value as u8 as u64,
        LoadKind::HalfUnsigned => value as u16 as u64,
        LoadKind::WordUnsigned => value as u32 as u64,
    }
}

#[inline]
const fn sign_extended(value: i32) -> u64 {
    (value as i64).cast_unsigned()
}

#[inline]
pub(crate) const fn holds(condition: Condition, a: u64, b: u64) -> bool {
    match condition {
        Condition::Equal => a == b,
        Condition::NotEqual => a != b,
        Condition::Less => a.cast_signed() < b.cast_signed(),
        Condition::GreaterEqual => a.cast_signed() >= b.cast_signed(),
        Condition::LessUnsigned => a < b,
        Condition::GreaterEqualUnsigned => a >= b,
    }
}

/// Reads the operand of an atomic; `None` if it isn't in RAM, because atomics are for RAM only.
fn load_atomic(bus: &Bus, width: AtomicWidth, address: GuestPhysAddr) -> Option<u64> {
    match width {
        AtomicWidth::Word => bus.ram.load(address).map(|bytes| alu::extend_word(u32::from_le_bytes(bytes))),
        AtomicWidth::Double => bus.ram.load(address).map(u64::from_le_bytes),
    }
}

fn store_atomic(bus: &mut Bus, width: AtomicWidth, address: GuestPhysAddr, value: u64) -> Option<()> {
    let [b0, b1, b2, b3, ..] = value.to_le_bytes();
    match width {
        AtomicWidth::Word => bus.ram.store(address, [b0, b1, b2, b3]),
        AtomicWidth::Double => bus.ram.store(address, value.to_le_bytes()),
    }
}

/// The new value of memory. Words are sign-extended, which keeps the order of both signed and
/// unsigned numbers.
fn combine(op: AmoOp, old: u64, operand: u64) -> u64 {
    match op {
        AmoOp::Swap => operand,
        AmoOp::Add => old.wrapping_add(operand),
        AmoOp::Xor => old ^ operand,
        AmoOp::And => old & operand,
        AmoOp::Or => old | operand,
        AmoOp::Min => old.cast_signed().min(operand.cast_signed()).cast_unsigned(),
        AmoOp::Max => old.cast_signed().max(operand.cast_signed()).cast_unsigned(),
        AmoOp::MinUnsigned => old.min(operand),
        AmoOp::MaxUnsigned => old.max(operand),
    }
}
