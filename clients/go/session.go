package main

import (
	"context"
	"sync/atomic"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
)

// tokenKey is the metadata key of consistency tokens. Both services send them; order-service accepts them.
const tokenKey = "x-consistency-token"

// tokenSession gives read-your-writes across services: it sends the last received token with the next call. Keep one
// per user session, not one per program.
type tokenSession struct {
	token atomic.Pointer[string]
}

func (s *tokenSession) intercept(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn,
	invoke grpc.UnaryInvoker, options ...grpc.CallOption) error {
	if token := s.token.Load(); token != nil {
		ctx = metadata.AppendToOutgoingContext(ctx, tokenKey, *token)
	}
	var header metadata.MD
	err := invoke(ctx, method, request, reply, conn, append(options, grpc.Header(&header))...)
	if tokens := header.Get(tokenKey); len(tokens) > 0 {
		s.token.Store(&tokens[0])
	}
	return err
}
