//! Image models in the layouts that people have them in.

mod files;
mod layouts;
mod published;
mod rules;
