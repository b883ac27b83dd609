//! Roles and drivers without processes: seeded runs of the simulator, every order of events of the
//! model, and the mutations that both must find.

mod model;
mod mutations;
mod program;
mod seeds;
