"""Keys that are accepted and have no effect on the log: a RocketMQ broker's, and some of DLedger's.

A real broker.conf must load unchanged; a key that is in neither list nor in the table is a spelling mistake.
"""

from __future__ import annotations

from typing import Final

__all__ = ["BROKER_KEYS", "DLEDGER_KEYS"]

DLEDGER_KEYS: Final[dict[str, str]] = {
    "configFilePath": "unused in DLedger too",
    "dataStorePath": "the data folder is <storePathRootDir>/dledger-<dLegerSelfId>",
    "readOnlyDataStoreDirs": "one data folder",
    "maxPushTimeOutMs": "replication is a stream; a break is seen at once",
    "enableLeaderElector": "elections are always on",
    "enablePushToFollower": "never read by DLedger",
    "maxHeartBeatLeak": "see electionTimeoutMs",
    "minVoteIntervalMs": "see electionTimeoutMs",
    "maxVoteIntervalMs": "see electionTimeoutMs",
    "minTakeLeadershipVoteIntervalMs": "a transfer campaigns at once",
    "maxTakeLeadershipVoteIntervalMs": "a transfer campaigns at once",
    "peerPushThrottlePoint": "see maxCatchUpBytes",
    "peerPushQuota": "see maxCatchUpBytes",
    "enableBatchAppend": "replication is always in batches",
    "enableBatchPush": "replication is always in batches",
    "isEnableBatchAppend": "replication is always in batches",
    "isEnableBatchPush": "replication is always in batches",
    "maxBatchAppendSize": "see maxAppendBytes",
    "maxBatchPushSize": "see maxAppendBytes",
    "maxBatchAppendIntervalMs": "no timer holds a batch back",
    "checkPointInterval": "see checkPointBytes",
    "fileReservedHours": "nothing is deleted yet",
    "deleteWhen": "nothing is deleted yet",
    "diskSpaceRatioToCheckExpired": "nothing is deleted yet",
    "diskSpaceRatioToForceClean": "nothing is deleted yet",
    "diskFullRatio": "a full disk is refused when it is full",
    "enableDiskForceClean": "nothing is deleted yet",
    "enableSnapshot": "no snapshots yet",
    "snapshotThreshold": "no snapshots yet",
    "maxSnapshotReservedNum": "no snapshots yet",
    "snapshotEntryResetStrategy": "no snapshots yet",
    "resetSnapshotEntriesDelayTime": "no snapshots yet",
    "resetSnapshotEntriesButKeepLastEntriesNum": "no snapshots yet",
    "enableFastAdvanceCommitIndex": "every term starts with a no-op",
    "metricsExporterType": "Prometheus only: see metricsPort",
    "metricsGrpcExporterTarget": "Prometheus only: see metricsPort",
    "metricsGrpcExporterHeader": "Prometheus only: see metricsPort",
    "metricGrpcExporterTimeOutInMills": "Prometheus only: see metricsPort",
    "metricGrpcExporterIntervalInMills": "Prometheus only: see metricsPort",
    "metricLoggingExporterIntervalInMills": "Prometheus only: see metricsPort",
    "metricsPromExporterPort": "see metricsPort",
    "metricsPromExporterHost": "see metricsAddress",
}
"""DLedger's settings without effect here, each with the reason."""

BROKER_KEYS: Final[frozenset[str]] = frozenset(
    """
    brokerClusterName brokerName brokerId brokerIP1 brokerIP2 listenPort namesrvAddr brokerPermission
    brokerRole brokerTopicEnable clusterTopicEnable messageStorePlugIn msgTraceTopicName traceTopicEnable
    rocketmqHome enableDLegerCommitLog enableDLedgerCommitLog storePathCommitLog storePathConsumeQueue
    storePathIndex storeCheckpoint abortFile storePathEpochFile storePathDLedgerCommitLog
    storePathBrokerIdentity rocksdbConfigPath commitLogForceSwapMapInterval syncFlushTimeout slaveTimeout
    haListenPort haSendHeartbeatInterval haHousekeepingInterval haTransferBatchSize haMasterAddress
    haSlaveFallbehindMax haMaxGapNotInSync haMaxTimeSlaveNotCatchup haFlowControlEnable
    maxHaTransferByteInSecond slaveReadEnable offsetCheckInSlave accessMessageInMemoryMaxRatio
    maxTransferBytesOnMessageInMemory maxTransferCountOnMessageInMemory maxTransferBytesOnMessageInDisk
    maxTransferCountOnMessageInDisk whichBrokerWhenConsumeSlowly fileReservedTime diskMaxUsedSpaceRatio
    diskSpaceWarningLevelRatio diskSpaceCleanForciblyRatio destroyMapedFileIntervalForcibly
    deleteCommitLogFilesInterval deleteConsumeQueueFilesInterval redeleteHangedFileInterval
    cleanFileForciblyEnable cleanResourceInterval sendMessageThreadPoolNums putMessageFutureThreadPoolNums
    pullMessageThreadPoolNums litePullMessageThreadPoolNums ackMessageThreadPoolNums
    processReplyMessageThreadPoolNums queryMessageThreadPoolNums adminBrokerThreadPoolNums
    clientManageThreadPoolNums consumerManageThreadPoolNums loadBalanceThreadPoolNums
    heartbeatThreadPoolNums recoverThreadPoolNums endTransactionThreadPoolNums brokerFastFailureEnable
    sendThreadPoolQueueCapacity putThreadPoolQueueCapacity pullThreadPoolQueueCapacity
    litePullThreadPoolQueueCapacity ackThreadPoolQueueCapacity replyThreadPoolQueueCapacity
    queryThreadPoolQueueCapacity clientManagerThreadPoolQueueCapacity consumerManagerThreadPoolQueueCapacity
    heartbeatThreadPoolQueueCapacity endTransactionPoolQueueCapacity loadBalanceThreadPoolQueueCapacity
    adminBrokerThreadPoolQueueCapacity waitTimeMillsInSendQueue waitTimeMillsInPullQueue
    waitTimeMillsInLitePullQueue waitTimeMillsInHeartbeatQueue waitTimeMillsInTransactionQueue
    waitTimeMillsInAckQueue waitTimeMillsInAdminBrokerQueue startAcceptSendRequestTimeStamp
    flushConsumerOffsetInterval flushConsumerOffsetHistoryInterval rejectTransactionMessage
    fetchNamesrvAddrByAddressServer fetchNameSrvAddrByDnsLookup fetchNamesrvAddrByDnsLookup
    registerBrokerTimeoutMills registerNameServerPeriod forceRegister compressedRegister namesrvAddrsSource
    brokerNotActiveTimeoutMillis brokerHeartbeatInterval maxMessageSize maxFilterMessageSize
    messageDelayLevel messageIndexEnable messageIndexSafe maxHashSlotNum maxIndexNum maxMsgsNumBatch
    defaultQueryMaxNum warmMapedFileEnable flushLeastPagesWhenWarmMapedFile mappedFileSizeCommitLog
    mapedFileSizeCommitLog mappedFileSizeConsumeQueue mapedFileSizeConsumeQueue
    mappedFileSizeConsumeQueueExt mappedFileSizeTimerLog enableConsumeQueueExt bitMapLengthConsumeQueueExt
    flushIntervalCommitLog commitIntervalCommitLog flushCommitLogTimed flushCommitLogLeastPages
    commitCommitLogLeastPages flushCommitLogThoroughInterval commitCommitLogThoroughInterval
    flushIntervalConsumeQueue flushConsumeQueueLeastPages flushConsumeQueueThoroughInterval
    useReentrantLockWhenPutMessage putMsgIndexHightWater osPageCacheBusyTimeOutMills
    transientStorePoolEnable transientStorePoolSize fastFailIfNoBufferInStorePool enableScheduleMessageStats
    maxDelayTime flushDelayOffsetInterval debugLockEnable duplicationEnable diskFallRecorded
    checkCRCOnRecover messageStoreConfigPath storeReplyMessageEnable enableCalcFilterBitMap
    expectConsumerNumUseFilter maxErrorRateOfBloomFilter filterDataCleanTimeSpan filterSupportRetry
    enablePropertyFilter autoCreateTopicEnable autoCreateSubscriptionGroup autoDeleteUnusedStats
    defaultTopicQueueNums longPollingEnable shortPollingTimeMills notifyConsumerIdsChangedEnable
    highSpeedMode commercialEnable commercialTimerCount commercialTransCount commercialBigCount
    commercialBaseCount transferMsgByHeap maxDelayLevelNum accountStatsEnable accountStatsPrintZeroValues
    regionId disableConsumeIfConsumerReadSlowly consumerFallbehindThreshold consumeManageThreadPoolNums
    slaveReadEnableWhenMasterDown transactionTimeOut transactionCheckInterval transactionCheckMax
    transactionMetricFlushInterval transactionalMessageCheckListener aclEnable aclFile enableDetailStat
    autoMessageVersionOnTopicLen filterServerNums traceOn isEnablePopLog popPollingSize popPollingMapSize
    popCkStayBufferTime popCkMaxBufferSize popCkOffsetMaxQueueSize enablePopBufferMerge enablePopBatchAck
    enableNotifyAfterPopOrderLockRelease reviveQueueNum reviveInterval reviveMaxSlow reviveScanTime
    enableSlaveActingMaster enableRemoteEscape enableSkipLongAwaitingAck skipPreOnlineCheck
    inBrokerContainer isolateLogEnable totalReplicas inSyncReplicas minInSyncReplicas allAckInSyncStateSet
    enableAutoInSyncReplicas asyncLearner syncFromLastFile enableControllerMode controllerAddr
    checkSyncStateSetPeriod syncBrokerMetadataPeriod syncControllerMetadataPeriod brokerElectionPriority
    controllerHeartBeatTimeoutMills fetchControllerAddrByDnsLookup delayHeartbeatInterval
    sendHeartbeatTimeoutMillis timerWheelEnable timerMaxDelaySec timerPrecisionMs timerFlushIntervalMs
    timerSkipUnknownError timerWarmEnable timerStopEnqueue timerStopDequeue timerRollWindowSlot
    timerCongestNumEachSlot timerGetMessageThreadNum timerPutMessageThreadNum timerEnableDisruptor
    timerInterceptDelayLevel disappearTimeAfterStart brokerContainerServer enableBatchConsumeQueue enableLmq
    enableMultiDispatch maxLmqConsumeQueueNum lmqMaxOffsetFlushInterval searchBcqByCacheEnable
    enableBuildConsumeQueueConcurrently readUnCommitted putConsumeQueueDataByFileChannel useTLS
    serverWorkerThreads serverCallbackExecutorThreads serverSelectorThreads serverOnewaySemaphoreValue
    serverAsyncSemaphoreValue serverChannelMaxIdleTimeSeconds serverSocketSndBufSize serverSocketRcvBufSize
    writeBufferHighWaterMark writeBufferLowWaterMark serverSocketBacklog serverPooledByteBufAllocatorEnable
    useEpollNativeSelector clientWorkerThreads clientCallbackExecutorThreads clientOnewaySemaphoreValue
    clientAsyncSemaphoreValue connectTimeoutMillis channelNotActiveInterval clientChannelMaxIdleTimeSeconds
    clientSocketSndBufSize clientSocketRcvBufSize clientPooledByteBufAllocatorEnable
    clientCloseSocketIfTimeout enableHttp2Proxy autoSwitchCompressionType grpcServerPort proxyMode
    """.split()  # noqa: SIM905 - a list of three hundred literals is no easier to read
)
"""A RocketMQ broker's keys (BrokerConfig, MessageStoreConfig, Netty); the log has no use for them."""
