//! Scripts that would end the process, if they could.

mod tests;
