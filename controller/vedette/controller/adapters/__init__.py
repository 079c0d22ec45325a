"""What touches the outside: database, files, certificates, gRPC, HTTP."""
