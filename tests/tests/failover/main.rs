//! Loss of one side, of both, of the arbiter, or of the link: the real programs.

mod arbiter_outage;
mod at_most_once;
mod backup_loss;
mod beginnings;
mod claims;
mod cold_restart;
mod etcd_arbiter;
mod etcd_failover;
mod joining;
mod kill;
mod lag;
mod lockstep;
mod machine_timer;
mod output_rule;
mod paper;
mod partition;
mod rejoin;
mod tap;
