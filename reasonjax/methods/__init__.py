"""Methods: small pure functions, one folder per slot. Adding a method never touches the rest of the
package."""
