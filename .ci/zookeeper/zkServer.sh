#!/bin/sh
# The server, in the foreground.
cat > /conf/zoo.cfg <<CONFIG
dataDir=/data
dataLogDir=${ZOO_DATA_LOG_DIR:-/datalog}
clientPort=2181
tickTime=2000
maxClientCnxns=60
admin.enableServer=${ZOO_ADMINSERVER_ENABLED:-true}
4lw.commands.whitelist=${ZOO_4LW_COMMANDS_WHITELIST:-srvr}
CONFIG
exec java "-Xmx${ZK_SERVER_HEAP:-1000}m" -cp /conf:/usr/share/java/zookeeper.jar \
  org.apache.zookeeper.server.quorum.QuorumPeerMain /conf/zoo.cfg
