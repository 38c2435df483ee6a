//! What the tests share: the program that runs in pods and probes them (`app`), the handle to a running testbed
//! (`lab`), and the pictures taken before and after a test (`snapshot`). Nothing of it is part of the product.

pub mod app;
pub mod lab;
pub mod shop;
pub mod snapshot;
