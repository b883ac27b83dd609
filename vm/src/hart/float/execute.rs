//! Execution of floating-point instructions.

use super::format::{Double, Format, Single};
use super::soft::{self, Context};
use super::{FloatStatus, compare, convert, native};
use crate::bus::Bus;
use crate::hart::mmu::Access;
use crate::hart::{Hart, Unretired};
use crate::isa::address::GuestVirtAddr;
use crate::isa::float::{FloatFormat, FloatInstruction, FloatOperation, FloatRegister, Fused, Rounding, RoundingField};

/// The bits of `fcsr` that are flags; the others are the rounding mode.
const FLAGS: u8 = 0x1f;
const FRM_SHIFT: u32 = 5;

impl Hart {
    /// Executes `instruction`. If it does not retire, nothing has changed.
    ///
    /// Never inlined: the loop that calls it is small without it.
    #[inline(never)]
    pub(in crate::hart) fn execute_float(&mut self, instruction: FloatInstruction) -> Result<(), Unretired> {
        self.require_float()?;
        match instruction.format {
            FloatFormat::Single => self.operate::<Single, Double>(instruction.operation),
            FloatFormat::Double => self.operate::<Double, Single>(instruction.operation),
        }
    }

    /// Loads a register.
    #[inline]
    pub(in crate::hart) fn load_float(
        &mut self,
        bus: &mut Bus,
        format: FloatFormat,
        rd: FloatRegister,
        address: GuestVirtAddr,
    ) -> Result<(), Unretired> {
        self.require_float()?;
        match format {
            FloatFormat::Single => {
                let bits = u32::from_le_bytes(
                    self.load(bus, address).map_err(|unretired| not_a_clock(unretired, Access::Load, address))?,
                );
                self.set_float::<Single>(rd, bits.into());
            }
            FloatFormat::Double => {
                let bits = u64::from_le_bytes(
                    self.load(bus, address).map_err(|unretired| not_a_clock(unretired, Access::Load, address))?,
                );
                self.set_float::<Double>(rd, bits);
            }
        }
        Ok(())
    }

    /// Stores the bits of a register: for a single the low ones, whether it is boxed or not.
    #[inline]
    pub(in crate::hart) fn store_float(
        &mut self,
        bus: &mut Bus,
        format: FloatFormat,
        address: GuestVirtAddr,
        rs2: FloatRegister,
    ) -> Result<(), Unretired> {
        self.require_float()?;
        let bytes = self.float_register(rs2).to_le_bytes();
        let [b0, b1, b2, b3, ..] = bytes;
        let stored = match format {
            FloatFormat::Single => self.store(bus, address, [b0, b1, b2, b3]),
            FloatFormat::Double => self.store(bus, address, bytes),
        };
        stored.map_err(|unretired| not_a_clock(unretired, Access::Store, address))
    }

    /// Floating-point instructions are illegal while the unit is off.
    #[inline]
    fn require_float(&self) -> Result<(), Unretired> {
        if self.float.status == FloatStatus::Off { Err(Unretired::Illegal) } else { Ok(()) }
    }

    /// The bits of a register, whether it is boxed or not.
    #[inline]
    const fn float_register(&self, register: FloatRegister) -> u64 {
        self.float.f[register.index()]
    }

    #[inline]
    fn operate<F: Format, Other: Format>(&mut self, operation: FloatOperation) -> Result<(), Unretired> {
        match operation {
            FloatOperation::Binary { op, rounding, rd, rs1, rs2 } => {
                let mut context = self.context(rounding)?;
                let result = native::binary::<F>(op, self.float::<F>(rs1), self.float::<F>(rs2), &mut context);
                self.retire_arithmetic::<F>(rd, result, context);
            }
            FloatOperation::MultiplyAdd(fused) => self.multiply_add::<F>(fused, false, false)?,
            FloatOperation::MultiplySubtract(fused) => self.multiply_add::<F>(fused, false, true)?,
            FloatOperation::NegatedMultiplySubtract(fused) => self.multiply_add::<F>(fused, true, false)?,
            FloatOperation::NegatedMultiplyAdd(fused) => self.multiply_add::<F>(fused, true, true)?,
            FloatOperation::SquareRoot { rounding, rd, rs1 } => {
                let mut context = self.context(rounding)?;
                let result = soft::square_root::<F>(self.float::<F>(rs1), &mut context);
                self.retire_arithmetic::<F>(rd, result, context);
            }
            FloatOperation::InjectSign { op, rd, rs1, rs2 } => {
                self.set_float::<F>(rd, compare::inject_sign::<F>(op, self.float::<F>(rs1), self.float::<F>(rs2)));
            }
            FloatOperation::Select { extreme, rd, rs1, rs2 } => {
                let mut flags = 0;
                let result = compare::select::<F>(extreme, self.float::<F>(rs1), self.float::<F>(rs2), &mut flags);
                self.raise(flags);
                self.set_float::<F>(rd, result);
            }
            FloatOperation::Compare { comparison, rd, rs1, rs2 } => {
                let mut flags = 0;
                let holds = compare::compare::<F>(comparison, self.float::<F>(rs1), self.float::<F>(rs2), &mut flags);
                self.raise(flags);
                self.set_register(rd, holds.into());
            }
            FloatOperation::Classify { rd, rs1 } => {
                self.set_register(rd, compare::classify::<F>(self.float::<F>(rs1)));
            }
            FloatOperation::ToInteger { kind, rounding, rd, rs1 } => {
                let mut context = self.context(rounding)?;
                let result = convert::to_integer::<F>(self.float::<F>(rs1), kind, &mut context);
                self.raise(context.flags);
                self.set_register(rd, result);
            }
            FloatOperation::FromInteger { kind, rounding, rd, rs1 } => {
                let mut context = self.context(rounding)?;
                let result = convert::from_integer::<F>(self.register(rs1), kind, &mut context);
                self.retire_arithmetic::<F>(rd, result, context);
            }
            FloatOperation::Resize { rounding, rd, rs1 } => {
                let mut context = self.context(rounding)?;
                let result = convert::resize::<Other, F>(self.float::<Other>(rs1), &mut context);
                self.retire_arithmetic::<F>(rd, result, context);
            }
            FloatOperation::MoveToInteger { rd, rs1 } => {
                self.set_register(rd, F::sign_extended(self.float_register(rs1)));
            }
            FloatOperation::MoveFromInteger { rd, rs1 } => self.set_float::<F>(rd, self.register(rs1)),
        }
        Ok(())
    }

    fn multiply_add<F: Format>(
        &mut self,
        fused: Fused,
        negate_product: bool,
        negate_addend: bool,
    ) -> Result<(), Unretired> {
        let Fused { rounding, rd, rs1, rs2, rs3 } = fused;
        let mut context = self.context(rounding)?;
        // A NaN's sign has no meaning, so operands may be negated instead of results.
        let (a, b) = (F::negated_if(negate_product, self.float::<F>(rs1)), self.float::<F>(rs2));
        let c = F::negated_if(negate_addend, self.float::<F>(rs3));
        let result = soft::multiply_add::<F>(a, b, c, &mut context);
        self.retire_arithmetic::<F>(rd, result, context);
        Ok(())
    }

    /// The rounding mode and flags for an instruction. An instruction whose rounding mode doesn't
    /// exist is illegal, even if its result is exact.
    #[inline]
    fn context(&self, rounding: RoundingField) -> Result<Context, Unretired> {
        let rounding = match rounding {
            RoundingField::Static(rounding) => rounding,
            RoundingField::Dynamic => {
                Rounding::from_frm(u32::from(self.float.fcsr >> FRM_SHIFT)).ok_or(Unretired::Illegal)?
            }
        };
        Ok(Context { rounding, flags: self.float.fcsr & FLAGS })
    }

    #[inline]
    fn float<F: Format>(&self, register: FloatRegister) -> u64 {
        F::unbox(self.float_register(register))
    }

    #[inline]
    fn set_float<F: Format>(&mut self, register: FloatRegister, bits: u64) {
        self.float.f[register.index()] = F::boxed(bits);
        self.float.status = FloatStatus::Dirty;
    }

    #[inline]
    fn retire_arithmetic<F: Format>(&mut self, rd: FloatRegister, result: u64, context: Context) {
        self.float.fcsr |= context.flags;
        self.set_float::<F>(rd, result);
    }

    /// Accrues `flags`, which makes FS dirty, as every write to the unit's state does: otherwise an
    /// operating system would lose the flags at its next context switch. QEMU 7.2 leaves FS clean
    /// here (measured), against the privileged architecture.
    #[inline]
    const fn raise(&mut self, flags: u8) {
        if flags != 0 {
            self.float.fcsr |= flags;
            self.float.status = FloatStatus::Dirty;
        }
    }
}

/// Floating-point loads and stores don't access clocks: there they fault.
fn not_a_clock(unretired: Unretired, access: Access, address: GuestVirtAddr) -> Unretired {
    if let Unretired::Awaits(_) = unretired { access.fault(address).into() } else { unretired }
}
