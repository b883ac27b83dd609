//! The primary's control step: questions to the arbiter, reports to the operator, and the end of
//! this side. These may take long, so no other step does them.

use super::LiveEnd;
use super::side::PrimarySide;
use crate::node::arbiter_client::{ArbiterClient, ArbiterTransport};
use crate::node::channel::lock;
use crate::node::host::{Answer, Host, Next, Question, StepKind};
use crate::node::log::DiskWatch;
use crate::node::reports::NodeReport;
use crate::node::wait_reports::WaitReports;
use ft::role::{PrimaryAction, PrimaryEnd, PrimaryRole};
use logchannel::entry::Generation;
use std::sync::atomic::Ordering;

/// How often the control step checks whether the guest still waits for its first backup and whether
/// the disk stalls, in nanoseconds.
const IDLE_CHECK_NS: u64 = 50_000_000;

/// How often an ending side checks whether its last outputs and messages have left, in nanoseconds.
const END_CHECK_NS: u64 = 1_000_000;

/// How long an ended VM waits for the network to carry the guest's last outputs, in nanoseconds.
const LAST_OUTPUTS_NS: u64 = 500_000_000;

/// How long an ending side waits for its backup to read the last messages, in nanoseconds; counted
/// from the end of the wait for outputs.
const LAST_MESSAGES_NS: u64 = 1_000_000_000;

/// The result of a control step.
#[derive(Debug)]
pub enum PrimaryStep {
    /// The side goes on; when to call the step again.
    Next(Next),
    /// The side has ended.
    End(LiveEnd),
}

/// An end that waits, for a bounded time, until the last outputs and messages have left.
#[derive(Debug)]
struct PrimaryEnding {
    end: LiveEnd,
    /// Until when it waits for the network to carry the guest's last outputs.
    outputs_until_ns: u64,
    /// Until when it waits for the backup to read the last messages.
    messages_until_ns: u64,
}

/// The state of the control step.
#[derive(Debug)]
pub struct PrimaryControl<D> {
    arbiter: ArbiterClient<D>,
    /// The wait for the first backup.
    first_backup_wait: WaitReports,
    was_alone: bool,
    disk: Option<DiskWatch>,
    /// The pending question is about a flag that the arbiter has lost and the owner claims again.
    is_refilling: bool,
    ending: Option<PrimaryEnding>,
}

impl<D: ArbiterTransport> PrimaryControl<D> {
    /// `true` while a question to the arbiter is unanswered.
    #[must_use]
    pub const fn is_asking(&self) -> bool {
        self.arbiter.is_asking()
    }
}

impl<H: Host> PrimarySide<H> {
    /// The control step's initial state. `disk` watches the log on disk, if there is one.
    pub fn control<D: ArbiterTransport>(
        &self,
        arbiter: ArbiterClient<D>,
        disk: Option<DiskWatch>,
    ) -> PrimaryControl<D> {
        // A guest that runs from the start has been without a backup before it gets one.
        let was_alone = !lock(&self.role).is_awaiting_backup();
        if was_alone {
            self.report_alone();
        }
        let first_backup_wait = WaitReports::since(self.host.now_ns());
        PrimaryControl { arbiter, first_backup_wait, was_alone, disk, is_refilling: false, ending: None }
    }

    /// Handles the arbiter's answer or the role's next action. Without either it checks the waits
    /// that an operator has to be told of.
    pub fn step_control<D: ArbiterTransport>(&self, control: &mut PrimaryControl<D>) -> PrimaryStep {
        if control.ending.is_some() {
            return self.step_ending(control);
        }
        if control.arbiter.is_asking() {
            return PrimaryStep::Next(self.wait_for_answer(control));
        }
        let action = lock(&self.actions).pop_front();
        let Some(action) = action else {
            let now_ns = self.host.now_ns();
            self.report_waiting(&mut control.first_backup_wait);
            if let Some(report) = control.disk.as_mut().and_then(|disk| disk.poll_report(now_ns)) {
                self.host.report(&report);
            }
            return PrimaryStep::Next(Next::Wait { until_ns: now_ns + IDLE_CHECK_NS });
        };
        match action {
            PrimaryAction::Claim(request) => {
                control.is_refilling = false;
                control.arbiter.ask(self.host.now_ns(), Question::Claim(request));
            }
            PrimaryAction::Refill(request) => {
                control.is_refilling = true;
                control.arbiter.ask(self.host.now_ns(), Question::Claim(request));
            }
            PrimaryAction::CheckClaim => control.arbiter.ask(self.host.now_ns(), Question::Latest),
            PrimaryAction::HandOver => return self.begin_ending(control, LiveEnd::HandedOver),
            PrimaryAction::End(end) => return self.begin_ending(control, LiveEnd::Role(end)),
            PrimaryAction::ClaimsLost { latest } => self.host.report(&NodeReport::ClaimsLost {
                vm: self.identity.vm.to_string(),
                generation: self.generation.load(Ordering::Relaxed),
                latest: latest.map(|flag| flag.0.saturating_add(1)),
            }),
            PrimaryAction::ClaimsRestored(generation) => {
                self.host.report(&NodeReport::ClaimsRestored { generation: generation.0 });
            }
            PrimaryAction::Confirmed(generation) => {
                self.host.report(&NodeReport::OwnerConfirmed { generation: generation.0 });
            }
            PrimaryAction::Stranded(generation) => {
                self.host.report(&NodeReport::Stranded { generation: generation.0 });
            }
            PrimaryAction::CloseChannel { reason } => {
                self.host.report(&NodeReport::BackupLost { reason: reason.to_string() });
            }
            PrimaryAction::Owner(generation) => {
                self.report_owner(generation);
                self.report_alone();
                control.was_alone = true;
            }
            PrimaryAction::Protected(generation) => {
                let again = control.was_alone;
                self.host.report(&NodeReport::Protected { generation: generation.0, again });
            }
        }
        self.host.wake(StepKind::Vcpu);
        PrimaryStep::Next(Next::Now)
    }

    /// Gives the role the arbiter's answer, once it has arrived or has been given up.
    fn wait_for_answer<D: ArbiterTransport>(&self, control: &mut PrimaryControl<D>) -> Next {
        let now_ns = self.host.now_ns();
        let Some(answer) = control.arbiter.poll_answer(now_ns, |report| self.host.report(report)) else {
            return Next::Wait { until_ns: control.arbiter.due_ns() };
        };
        let is_refilling = control.is_refilling;
        self.drive(|role: &mut PrimaryRole, now_ns| match answer {
            Answer::Claim(answer) if is_refilling => role.handle_refill(now_ns, answer),
            Answer::Claim(answer) => role.handle_claim(now_ns, answer),
            Answer::Latest(answer) => role.handle_latest(now_ns, answer),
        });
        self.host.wake(StepKind::Vcpu);
        Next::Now
    }

    fn begin_ending<D>(&self, control: &mut PrimaryControl<D>, end: LiveEnd) -> PrimaryStep {
        let now_ns = self.host.now_ns();
        // After these ends there is no backup to send outputs that the network hasn't carried yet.
        let has_last_outputs = matches!(end, LiveEnd::Role(PrimaryEnd::GuestStopped(_) | PrimaryEnd::Retired));
        let outputs_until_ns = if has_last_outputs { now_ns + LAST_OUTPUTS_NS } else { now_ns };
        control.ending =
            Some(PrimaryEnding { end, outputs_until_ns, messages_until_ns: outputs_until_ns + LAST_MESSAGES_NS });
        self.step_ending(control)
    }

    /// Ends the side once its last outputs and messages have left, or the time for that is over.
    fn step_ending<D>(&self, control: &mut PrimaryControl<D>) -> PrimaryStep {
        self.write_outgoing();
        self.write_released();
        let now_ns = self.host.now_ns();
        let has_left = lock(&self.role).gate().has_all_left();
        let waits = |ending: &PrimaryEnding| {
            (!has_left && now_ns < ending.outputs_until_ns)
                || (self.has_unsent_messages() && now_ns < ending.messages_until_ns)
        };
        match control.ending.take_if(|ending| !waits(ending)) {
            Some(PrimaryEnding { end, .. }) => PrimaryStep::End(end),
            None => PrimaryStep::Next(Next::Wait { until_ns: now_ns + END_CHECK_NS }),
        }
    }

    fn has_unsent_messages(&self) -> bool {
        lock(&self.role).has_outgoing() || !self.channel.is_idle()
    }

    /// Reports that the guest waits for its first backup: at first after a second, then ever more
    /// rarely.
    fn report_waiting(&self, first_backup_wait: &mut WaitReports) {
        if !lock(&self.role).is_awaiting_backup() {
            return;
        }
        if let Some(seconds) = first_backup_wait.due(self.host.now_ns()) {
            let channel = self.identity.address.clone();
            self.host.report(&NodeReport::GuestWaits { channel, seconds });
        }
    }

    fn report_alone(&self) {
        let generation = self.generation.load(Ordering::Relaxed);
        self.host.report(&NodeReport::Alone { generation });
    }

    fn report_owner(&self, generation: Generation) {
        self.host.report(&NodeReport::Owner {
            vm: self.identity.vm.to_string(),
            generation: generation.0,
            node: self.identity.node.to_string(),
        });
    }
}
