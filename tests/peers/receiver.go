// The tutorial's receiver: receiver ADDRESS, into the current directory.
// It prints where it listens (the tests let the system choose the port) and
// serves one connection.
package main

import (
	"fmt"
	"io"
	"net"
	"os"
)

func recvFile(name string, conn net.Conn) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		if n == 0 || err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		f.Write(buf[:n])
	}
}

func main() {
	listener, err := net.Listen("tcp", os.Args[1])
	if err != nil {
		fmt.Println("net.Listen err =", err)
		os.Exit(1)
	}
	defer listener.Close()
	fmt.Println("listening", listener.Addr())
	conn, err := listener.Accept()
	if err != nil {
		fmt.Println("listener.Accept err =", err)
		os.Exit(1)
	}
	defer conn.Close()
	buf := make([]byte, 1024)
	n, err := conn.Read(buf)
	if err != nil {
		fmt.Println("conn.Read err =", err)
		os.Exit(1)
	}
	name := string(buf[:n])
	conn.Write([]byte("ok"))
	if err := recvFile(name, conn); err != nil {
		fmt.Println("recvFile err =", err)
		os.Exit(1)
	}
	fmt.Println("received", name)
}
